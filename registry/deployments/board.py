"""PURE. How deployments stand, as it is shown: to people, to other registries and to routers."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec import UNSET, convert
from msgspec.structs import replace

from common.clock import iso
from common.wire.deployment import (
    DeploymentInfo,
    DeploymentMember,
    DeploymentPhase,
    DeploymentReplica,
    DeploymentRevision,
    ModelState,
    Standing,
)
from registry.deployments.model import Assignment, SeenReplica, StoredDeployment, Traffic
from registry.deployments.stored import model_of


class Status(Standing, frozen=True, kw_only=True):
    """What only the registry that leads knows of a deployment; the others read it in the store. `hold`: one may wait for it."""

    hold: bool = True


def first_status(stored: StoredDeployment) -> Status:
    """Of one that nobody has planned for yet."""
    if stored.deleted:
        return Status(phase=DeploymentPhase.STOPPING, hold=False)
    cold = stored.spec.get("replicas", {}).get("min", 1) == 0
    return Status(phase=DeploymentPhase.COLD if cold else DeploymentPhase.STARTING)


def status_of(
    stored: StoredDeployment,
    standing: Standing,
    traffic: Traffic,
    seen: Mapping[str, SeenReplica],
    *,
    start: tuple[str | None, int | None, float | None],
    hold_within_s: float,
    now: float,
) -> Status:
    """A deployment after planning. `seen`: those that are where they were assigned, by request id; `start`: stage, percent and seconds of the start that is nearest to its end."""
    stage, percent, eta_s = start
    told = replace(
        standing,
        in_flight=traffic.in_flight,
        waiting=traffic.waiting,
        stage=UNSET if stage is None else stage,
        percent=UNSET if percent is None else percent,
        eta_s=UNSET if eta_s is None else round(eta_s, 1),
        last_request_at=None if traffic.last_request_at is None else _iso(traffic.last_request_at),
        replicas=_replicas(stored, seen),
    )
    return Status(**members(told), hold=_hold(stored, standing, now, hold_within_s))


def members(standing: Standing) -> dict[str, Any]:
    """What every account of a deployment has in common."""
    return {name: getattr(standing, name) for name in Standing.__struct_fields__}


def _hold(stored: StoredDeployment, standing: Standing, now: float, within_s: float) -> bool:
    match standing.phase:
        case DeploymentPhase.UNSCHEDULABLE:
            return False
        case DeploymentPhase.FAILING:
            return min((one.until for one in stored.setbacks), default=now) - now <= within_s
        case _:
            return not stored.deleted and stored.scaled != 0


def _replicas(stored: StoredDeployment, seen: Mapping[str, SeenReplica]) -> list[DeploymentReplica]:
    found = []
    for one in stored.assignments:
        replica = seen.get(one.request_id)
        since = one.made_at if replica is None or replica.status_since is None else replica.status_since
        found.append(
            DeploymentReplica(
                request_id=one.request_id,
                node=one.node,
                revision=one.revision,
                status=_status(replica),
                replica_id=None if replica is None else replica.replica_id,
                since=_iso(since),
                leaving=one.leaving,
                members=_members(one, seen) if one.followers else [],
            )
        )
    return found


def _members(assignment: Assignment, seen: Mapping[str, SeenReplica]) -> list[DeploymentMember]:
    found = []
    for rank, (request_id, node) in enumerate(assignment.places):
        replica = seen.get(request_id)
        replica_id = None if replica is None else replica.replica_id
        found.append(DeploymentMember(rank=rank, node=node, status=_status(replica), replica_id=replica_id))
    return found


def _status(replica: SeenReplica | None) -> str:
    if replica is None:
        return "assigned"
    return "asleep" if replica.asleep else replica.status.value


def _iso(moment: float) -> str:
    return iso(datetime.fromtimestamp(moment, UTC))


def info_of(stored: StoredDeployment, status: Status) -> DeploymentInfo:
    """`GET /api/v1/deployments/{name}`."""
    return DeploymentInfo(
        **members(status),
        name=stored.name,
        model=model_of(stored.name, stored.spec),
        version=stored.version,
        revision=stored.revision,
        spec=stored.spec,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        paused=stored.held is not None,
        scaled=UNSET if stored.scaled is None else stored.scaled,
        history=convert(list(stored.history), list[DeploymentRevision]),
    )


def states(stored: Mapping[str, StoredDeployment], statuses: Mapping[str, Status]) -> list[ModelState]:
    """What routers hear; one that is being deleted and has nothing left that serves is not told."""
    found = []
    for name, one in sorted(stored.items()):
        status = statuses.get(name) or first_status(one)
        if one.deleted and not status.ready:
            continue
        found.append(
            ModelState(
                model=model_of(name, one.spec),
                deployment=name,
                phase=status.phase,
                stage=status.stage,
                percent=status.percent,
                eta_s=status.eta_s,
                position=status.position,
                reason=UNSET if status.reason is None else status.reason,
                hold=status.hold,
            )
        )
    return found
