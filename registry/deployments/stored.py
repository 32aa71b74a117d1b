"""PURE. A deployment as a document: its text, what a change of it does, and what the planner and an agent need of it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import msgspec

from common.wire.base import JsonObject
from common.wire.deployment import DEPLOYMENT_KEY, REQUEST_PREFIX, REVISION_KEY, DeploymentChange, DeploymentRevision
from common.wire.replica import InfoMarks
from common.wire.specification import RUNS, DeploymentSpec
from registry.deployments.model import Assignment, Follower, Setback, Start, StoredDeployment, Wish

KEPT = 10
"""Revisions that are remembered, the one in force among them."""
SETBACK_FIRST_S = 1.0
SETBACK_LONGEST_S = 300.0
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(StoredDeployment).decode


def encode(stored: StoredDeployment) -> bytes:
    """As it is written."""
    return _encode(stored)


def decode(raw: bytes) -> StoredDeployment:
    """Reads what `encode` wrote.

    Raises:
        msgspec.MsgspecError: It is something else.
    """
    return _decode(raw)


def spec_json(spec: DeploymentSpec) -> JsonObject:
    """A specification with all its defaults, as JSON has it."""
    return spec.model_dump(mode="json", exclude_none=True)


def spec_of(stored: StoredDeployment) -> DeploymentSpec:
    """The specification in force."""
    return DeploymentSpec.model_validate(stored.spec)


def model_of(name: str, spec: JsonObject) -> str:
    """The name that clients ask for."""
    return str(spec.get("model") or (spec.get("request") or {}).get("model_name") or name)


# Changes.


def changed(
    name: str, before: StoredDeployment | None, spec: DeploymentSpec, *, uid: str, at: str, cause: str = ""
) -> tuple[StoredDeployment, DeploymentChange]:
    """The deployment with another specification, and what that means. One that is `unchanged` comes back as it is."""
    new = spec_json(spec)
    if before is None or before.deleted:
        history = () if before is None else before.history
        revision = 1 if before is None else before.revision + 1
        version = 1 if before is None else before.version + 1
        fresh = StoredDeployment(name, uid, version, revision, new, created_at=at, updated_at=at)
        if before is not None:  # what still stops of the one before keeps its place, and its numbers are not used again
            fresh = replace(fresh, uid=before.uid, serial=before.serial, assignments=before.assignments)
        fresh = replace(fresh, history=_with(history, fresh, cause))
        return fresh, DeploymentChange(
            name=name, change="created", version=version, revision=revision, diff=difference({}, new)
        )
    old = before.spec
    diff = difference(old, new)
    if not diff:
        same = before if before.scaled is None else replace(before, scaled=None, version=before.version + 1)
        kind: Literal["unchanged", "updated"] = "unchanged" if same is before else "updated"
        return same, DeploymentChange(name=name, change=kind, version=same.version, revision=same.revision)
    rolls = any(_runs(name, old, member) != _runs(name, new, member) for member in RUNS)
    revision = before.revision + rolls
    after = replace(
        before,
        version=before.version + 1,
        revision=revision,
        spec=new,
        updated_at=at,
        scaled=None,
        setbacks=() if rolls else before.setbacks,
    )
    after = replace(after, history=_with(before.history, after, cause))
    return after, DeploymentChange(
        name=name, change="rolls" if rolls else "updated", version=after.version, revision=revision, diff=diff
    )


def _runs(name: str, spec: JsonObject, member: str) -> object:
    return model_of(name, spec) if member == "model" else spec.get(member)


def _with(history: Iterable[JsonObject], stored: StoredDeployment, cause: str) -> tuple[JsonObject, ...]:
    """The history with the revision in force at its end, as it stands now."""
    entry = DeploymentRevision(revision=stored.revision, at=stored.updated_at, spec=stored.spec, cause=cause)
    older = [one for one in history if one.get("revision") != stored.revision]
    return (*older, msgspec.to_builtins(entry))[-KEPT:]


def difference(old: JsonObject, new: JsonObject, prefix: str = "") -> dict[str, list[Any]]:
    """Dotted members that differ, with their values before and after; None where one has none."""
    found: dict[str, list[Any]] = {}
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found.update(difference(before, after, f"{prefix}{key}."))
        elif type(before) is not type(after) or before != after:
            found[prefix + key] = [before, after]
    return found


def revision_of(stored: StoredDeployment, revision: int) -> JsonObject | None:
    """The specification of one of the last revisions."""
    if revision == stored.revision:
        return stored.spec
    return next((one["spec"] for one in stored.history if one.get("revision") == revision), None)


def revision_before(stored: StoredDeployment) -> int | None:
    """The newest revision before the one in force."""
    older = [int(one["revision"]) for one in stored.history if int(one["revision"]) < stored.revision]
    return max(older, default=None)


def held_revision(stored: StoredDeployment) -> int:
    """What goes on being started while a rollout is paused: the oldest that runs, which the rollout would replace."""
    running = [one.revision for one in stored.assignments if not one.leaving]
    return min(running, default=stored.revision) if stored.held is None else stored.held


# For the planner.


def wish_of(stored: StoredDeployment, start_s: float | None = None) -> Wish:
    """What the planner needs of it. While its rollout is paused, what is missing is made as it was before."""
    spec = spec_of(stored)
    held = None if stored.held is None else revision_of(stored, stored.held)
    runs = stored.spec if held is None else held
    return Wish(
        name=stored.name,
        revision=stored.revision if held is None or stored.held is None else stored.held,
        template=runs.get("template"),
        accelerators=runs.get("accelerators"),
        memory_mb=runs.get("memory_mb"),
        followers=runs.get("followers"),
        least=spec.replicas.min,
        most=spec.replicas.max,
        in_flight_per_replica=spec.scale.in_flight_per_replica,
        up_after_s=spec.scale.up_after_s,
        down_after_s=spec.scale.down_after_s,
        idle_s=spec.idle_s,
        dwell_s=spec.dwell_s,
        surge=spec.max_surge or 1,
        nodes=spec.placement.nodes,
        labels=spec.placement.labels,
        spread=spec.placement.spread,
        priority=spec.priority,
        paused=stored.held is not None,
        scaled=stored.scaled,
        woken_at=stored.woken_at,
        slept_at=stored.slept_at,
        deleted=stored.deleted,
        start_s=start_s,
    )


def uid_of(request: str) -> str | None:
    """The deployment's uid in a request id; None for one that is none of ours."""
    uid, dash, number = request.removeprefix(REQUEST_PREFIX).rpartition("-")
    return uid if request.startswith(REQUEST_PREFIX) and dash and uid and number.isdigit() else None


def assigned(stored: StoredDeployment, starts: Iterable[Start], now: float) -> StoredDeployment:
    """With one assignment more for each of `starts`."""
    serial, made = stored.serial, list(stored.assignments)
    for one in starts:
        ids = [f"{REQUEST_PREFIX}{stored.uid}-{serial + 1 + rank}" for rank in range(1 + len(one.followers))]
        serial += len(ids)
        followers = tuple(Follower(*place) for place in zip(ids[1:], one.followers, strict=True))
        made.append(Assignment(ids[0], stored.name, one.revision, one.node, now, needs=one.needs, followers=followers))
    return replace(stored, serial=serial, assignments=tuple(made))


def set_back(stored: StoredDeployment, node: str, reason: str, now: float) -> StoredDeployment:
    """With one failed start more on `node`: the next one waits twice as long."""
    before = next((one for one in stored.setbacks if one.node == node), None)
    failures = before.failures + 1 if before else 1
    wait_s = min(SETBACK_LONGEST_S, SETBACK_FIRST_S * 2.0 ** min(failures - 1, 20))
    others = [one for one in stored.setbacks if one.node != node]
    setback = Setback(stored.name, node, failures, now + wait_s, reason[:300])
    return replace(stored, setbacks=(*others, setback)[-64:])


# For an agent.


def create_bodies(stored: StoredDeployment, assignment: Assignment) -> list[JsonObject]:
    """Bodies of the create calls for an assignment, one for each of its `places`; none when its revision is no longer known."""
    body = _create_body(stored, assignment)
    if body is None or not assignment.followers:
        return [] if body is None else [body]
    size, group = len(assignment.places), assignment.request_id
    return [
        {
            **body,
            "request_id": request_id,
            "metadata": {**body["metadata"], **msgspec.to_builtins(InfoMarks(group=group, rank=rank))},
            "placement": {"node": node},
            "group": {"rank": rank, "size": size},
        }
        for rank, (request_id, node) in enumerate(assignment.places)
    ]


def _create_body(stored: StoredDeployment, assignment: Assignment) -> JsonObject | None:
    spec = revision_of(stored, assignment.revision)
    if spec is None:
        return None
    marks: Mapping[str, object] = {DEPLOYMENT_KEY: stored.name, REVISION_KEY: assignment.revision}
    request: JsonObject = dict(spec.get("request") or {})
    body: JsonObject = {
        **request,
        "model_name": model_of(stored.name, spec),
        "request_id": assignment.request_id,
        "metadata": {**request.get("metadata", {}), **marks},
        "placement": {**request.get("placement", {}), "node": assignment.node},
    }
    if spec.get("template") is not None:
        body["backend"] = {"template": spec["template"], "parameters": spec.get("parameters", {})}
    body.update({key: spec[key] for key in ("accelerators", "memory_mb") if spec.get(key) is not None})
    return body
