"""PURE. How deployments stand, as it is shown: to people, to other registries and to routers."""

from collections.abc import Mapping
from datetime import UTC, datetime

from msgspec import UNSET, UnsetType, convert

from common.clock import iso
from common.wire.base import Message
from common.wire.deployment import DeploymentInfo, DeploymentPhase, DeploymentReplica, DeploymentRevision, ModelState
from registry.deployments.model import SeenReplica, Standing, StoredDeployment, Traffic
from registry.deployments.stored import model_of


class Status(Message, frozen=True, kw_only=True):
    """What only the registry that leads knows of a deployment; the others read it in the store."""

    phase: DeploymentPhase
    reason: str | None = None
    wanted: int = 0
    ready: int = 0
    starting: int = 0
    asleep: int = 0
    leaving: int = 0
    in_flight: int = 0
    waiting: int = 0
    stage: str | UnsetType = UNSET
    percent: int | UnsetType = UNSET
    eta_s: float | UnsetType = UNSET
    position: int | UnsetType = UNSET
    last_request_at: str | None = None
    hold: bool = True
    replicas: list[DeploymentReplica] = []


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
    return Status(
        phase=standing.phase,
        reason=standing.reason,
        wanted=standing.wanted,
        ready=standing.ready,
        starting=standing.starting,
        asleep=standing.asleep,
        leaving=standing.leaving,
        in_flight=traffic.in_flight,
        waiting=traffic.waiting,
        stage=UNSET if stage is None else stage,
        percent=UNSET if percent is None else percent,
        eta_s=UNSET if eta_s is None else round(eta_s, 1),
        position=UNSET if standing.position is None else standing.position,
        last_request_at=None if traffic.last_request_at is None else _iso(traffic.last_request_at),
        hold=_hold(stored, standing, now, hold_within_s),
        replicas=_replicas(stored, seen),
    )


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
                status="assigned" if replica is None else "asleep" if replica.asleep else replica.status.value,
                replica_id=None if replica is None else replica.replica_id,
                since=_iso(since),
                leaving=one.leaving,
            )
        )
    return found


def _iso(moment: float) -> str:
    return iso(datetime.fromtimestamp(moment, UTC))


def info_of(stored: StoredDeployment, status: Status) -> DeploymentInfo:
    """`GET /api/v1/deployments/{name}`."""
    members = {name: getattr(status, name) for name in Status.__struct_fields__ if name != "hold"}
    return DeploymentInfo(
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
        **members,
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
