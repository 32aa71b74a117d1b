"""Deployments over HTTP (docs/adr/0013): what should run, and how it stands; and what routers are asked for."""

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import msgspec
from aiohttp import ClientConnectionResetError, web
from pydantic import ValidationError

from common.clock import now_iso
from common.http.errors import ApiError, check_values, read_json_object
from common.wire.base import JsonObject
from common.wire.create import CreateRequest
from common.wire.deployment import Demand, DemandAnswer, DeploymentChange, DeploymentList, ScaleCall, UndoCall
from common.wire.specification import DeploymentSpec
from registry.deployments.checks import judge
from registry.deployments.model import StoredDeployment
from registry.deployments.stored import changed, held_revision, model_of, revision_before, revision_of, spec_json
from registry.http.context import GRANT, REGISTRY, Registry, answer
from registry.http.guard import EVERYTHING, Level
from registry.views.render import encode_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
MOST = 1000
DEMAND_MODELS_MOST = 2000
BEAT_S = 10.0
STALL_S = 30.0
EVENTS_MOST = 256
"""Open event streams of all deployments together."""
Others = Mapping[str, StoredDeployment]
Change = Callable[[StoredDeployment], StoredDeployment]
Call = TypeVar("Call", ScaleCall, UndoCall, Demand)


async def list_deployments(request: web.Request) -> web.Response:
    """`GET /api/v1/deployments`."""
    keeper = request.app[REGISTRY].keeper
    stored = (await keeper.books.read()).stored
    infos = [keeper.shown.info(stored[name]) for name in sorted(stored)]
    return answer(DeploymentList(total=len(infos), deployments=infos))


async def get_deployment(request: web.Request) -> web.Response:
    """`GET /api/v1/deployments/{name}`."""
    return _show(request, await _stored(request))


async def put(request: web.Request) -> web.Response:
    """`PUT /api/v1/deployments/{name}[?dry_run=true]`, with `If-Match: VERSION` only if it still has that version."""
    registry, name = _may_write(request)
    dry_run = request.query.get("dry_run", "false").lower()
    if dry_run not in ("true", "false"):
        raise ApiError(400, "parameter 'dry_run' must be true or false", field="dry_run")
    body = await read_json_object(request)
    check_values(body, status=422)
    spec = _spec(body)
    warnings = judge(name, spec, registry.keeper.nodes())
    expected, uid, at = request.headers.get("If-Match"), secrets.token_hex(5), now_iso()
    change: DeploymentChange | None = None

    def apply(before: StoredDeployment | None, others: Others) -> StoredDeployment | None:
        nonlocal change
        _check_version(expected, before)
        _check_model(name, spec, others)
        if before is None and len(others) >= MOST:
            raise ApiError(507, f"there are {MOST} deployments, and may be no more; delete one")
        after, change = changed(name, before, spec, uid=uid, at=at, cause="put")
        return before if dry_run == "true" else after

    await registry.keeper.books.change(name, apply)
    registry.keeper.nudge()
    if change is None:
        raise ApiError(503, "the store is busy; try again", headers={"Retry-After": "1"})
    change = msgspec.structs.replace(change, warnings=warnings)
    created = change.change == "created" and dry_run == "false"
    return answer(change, status=201 if created else 200, headers={"ETag": str(change.version)})


async def delete(request: web.Request) -> web.Response:
    """`DELETE /api/v1/deployments/{name}`: its replicas drain and go, then it does."""
    return await _change(
        request, lambda one: one if one.deleted else replace(one, deleted=True, scaled=None), status=202
    )


async def scale(request: web.Request) -> web.Response:
    """`POST …/scale`."""
    call = _body(ScaleCall, await read_json_object(request))
    return await _change(request, lambda one: replace(one, scaled=call.replicas))


async def wake(request: web.Request) -> web.Response:
    """`POST …/wake`: as if somebody asked for its model."""
    return await _change(request, lambda one: replace(one, woken_at=_now(request), slept_at=None))


async def sleep(request: web.Request) -> web.Response:
    """`POST …/sleep`: down to `min`, asleep where its template can, until somebody asks for its model."""
    return await _change(request, lambda one: replace(one, slept_at=_now(request), woken_at=None))


async def pause(request: web.Request) -> web.Response:
    """`POST …/pause` and `/resume`: its rollout."""
    paused = request.path.endswith("/pause")
    return await _change(request, lambda one: replace(one, held=held_revision(one) if paused else None))


async def undo(request: web.Request) -> web.Response:
    """`POST …/undo`: back to a revision of before, as a new one."""
    call = _body(UndoCall, await read_json_object(request, empty=True))
    at = now_iso()

    def back(one: StoredDeployment) -> StoredDeployment:
        wanted = revision_before(one) if call.revision is None else call.revision
        spec = None if wanted is None else revision_of(one, wanted)
        if wanted is None or spec is None:
            known = ", ".join(str(it["revision"]) for it in one.history)
            raise ApiError(422, f"field 'revision': {wanted} is none of the last ones: {known}", field="revision")
        cause = f"undo to {wanted}"
        return changed(one.name, one, DeploymentSpec.model_validate(spec), uid=one.uid, at=at, cause=cause)[0]

    return await _change(request, back)


async def events(request: web.Request) -> web.StreamResponse:
    """`GET …/events`: the deployment now, and again whenever it changes; ends when it is gone."""
    stored: StoredDeployment | None = await _stored(request)
    registry = request.app[REGISTRY]
    if registry.deployment_streams >= EVENTS_MOST:
        raise ApiError(503, "too many streams", headers={"Retry-After": "5"})
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    registry.deployment_streams += 1
    try:
        await response.prepare(request)
        await _send_events(request, response, stored)
    except (ClientConnectionResetError, ConnectionError, TimeoutError):
        return response  # the client is gone, or takes nothing
    finally:
        registry.deployment_streams -= 1
    return response


async def _send_events(request: web.Request, response: web.StreamResponse, stored: StoredDeployment | None) -> None:
    shown, name, said = request.app[REGISTRY].keeper.shown, request.match_info["name"], b""
    while not shown.closed:
        changed_now = shown.changed
        stored = shown.stored.get(name, stored)
        text = b"" if stored is None else encode_json(shown.info(stored))
        async with asyncio.timeout(STALL_S):
            if stored is None:
                await response.write(b"event: end\ndata: {}\n\n")
                return
            await response.write(b": beat\n\n" if text == said else b"event: deployment\ndata: %b\n\n" % text)
        said = text
        with suppress(TimeoutError):
            async with asyncio.timeout(BEAT_S):
                await changed_now.wait()
        stored = shown.stored.get(name)
        if stored is None:  # it may be so new that no round has seen it
            stored = (await request.app[REGISTRY].keeper.books.read()).stored.get(name)


async def demand(request: web.Request) -> web.Response:
    """`POST /v1/routers/{name}/demand`: what a router is asked for; answers how every deployment stands."""
    body = await read_json_object(request)
    told = _body(Demand, body)
    if len(told.models) > DEMAND_MODELS_MOST:
        raise ApiError(422, f"field 'models': at most {DEMAND_MODELS_MOST}", field="models")
    keeper = request.app[REGISTRY].keeper
    keeper.heard(request.match_info["name"], told)
    if not keeper.shown.known:  # a router would fail those that it holds
        raise ApiError(503, "the deployments have not been read yet")
    return answer(DemandAnswer(models=keeper.shown.states()))


# What they have in common.


def _may_write(request: web.Request) -> tuple[Registry, str]:
    request.get(GRANT, EVERYTHING).check(Level.ADMIN, None)
    name = request.match_info["name"]
    if NAME.fullmatch(name) is None:
        raise ApiError(
            422, "name: must be 1 to 63 of A-Z a-z 0-9 . _ - and begin with a letter or a digit", field="name"
        )
    return request.app[REGISTRY], name


def _now(request: web.Request) -> float:
    return request.app[REGISTRY].keeper.now


async def _stored(request: web.Request) -> StoredDeployment:
    name = request.match_info["name"]
    found = (await request.app[REGISTRY].keeper.books.read()).stored.get(name)
    if found is None:
        raise ApiError(404, f"deployment {name[:64]!r} not found")
    return found


def _show(request: web.Request, stored: StoredDeployment, *, status: int = 200) -> web.Response:
    info = request.app[REGISTRY].keeper.shown.info(stored)
    return answer(info, status=status, headers={"ETag": str(stored.version)})


async def _change(request: web.Request, change: Change, *, status: int = 200) -> web.Response:
    """Change one that is there, and show it."""
    registry, name = _may_write(request)
    expected = request.headers.get("If-Match")

    def apply(before: StoredDeployment | None, others: Others) -> StoredDeployment | None:
        del others
        if before is None:
            raise ApiError(404, f"deployment {name!r} not found")
        _check_version(expected, before)
        after = change(before)
        return before if after == before else after if after.version != before.version else _next(after)

    after = await registry.keeper.books.change(name, apply)
    registry.keeper.nudge()
    if after is None:
        raise ApiError(404, f"deployment {name!r} not found")
    return _show(request, after, status=status)


def _next(stored: StoredDeployment) -> StoredDeployment:
    return replace(stored, version=stored.version + 1, updated_at=now_iso())


def _check_version(expected: str | None, before: StoredDeployment | None) -> None:
    if expected is None or expected == "*":
        return
    version = 0 if before is None else before.version
    if expected.strip().strip('"') != str(version):
        raise ApiError(412, f"If-Match: its version is {version}, not {expected[:32]}", version=version)


def _check_model(name: str, spec: DeploymentSpec, others: Others) -> None:
    model = model_of(name, spec_json(spec))
    for other in others.values():
        if other.name != name and not other.deleted and model_of(other.name, other.spec) == model:
            raise ApiError(409, f"field 'model': deployment {other.name!r} serves {model!r} already", field="model")


def _spec(body: JsonObject) -> DeploymentSpec:
    """The specification in a body.

    Raises:
        ApiError: 422; the message and `details` name every bad member, `field` the first.
    """
    try:
        spec = DeploymentSpec.model_validate(body)
        if spec.request is not None:
            CreateRequest.model_validate({"model_name": spec.model or "model", **spec.request})
    except ValidationError as error:
        prefix = "request." if error.title == CreateRequest.__name__ else ""
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        details = [
            {"field": prefix + ".".join(map(str, it["loc"])), "problem": it["msg"].removeprefix("Value error, ")}
            for it in faults[:20]
        ]
        text = "; ".join(f"field {it['field']!r}: {it['problem']}" if it["field"] else it["problem"] for it in details)
        raise ApiError(422, text, field=details[0]["field"], details=details) from error
    return spec


def _body(kind: type[Call], body: JsonObject) -> Call:
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise ApiError(422, str(error)) from error
