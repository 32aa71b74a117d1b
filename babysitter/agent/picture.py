"""PURE: a replica as the release server shows it (docs/contract.md 5), from its request, its state file and its record."""

from msgspec import UNSET, to_builtins
from msgspec.structs import replace

from babysitter.agent.model import Desired, ReplicaRecord
from babysitter.memory import SavedReplica
from common.wire.create import NAMESPACE, RequestGlance
from common.wire.replica import InfoMarks, ReplicaInfo, ReplicaMembers, Stage
from common.wire.words import NOT_SERVING, DisplayStatus, ReplicaStatus

ENDED = frozenset({ReplicaStatus.STOPPED, ReplicaStatus.FAILED})
SERVED = frozenset(
    {ReplicaStatus.READY, ReplicaStatus.ASLEEP, ReplicaStatus.UNHEALTHY, ReplicaStatus.WAITING_FOR_READY}
)
DISPLAY = {
    ReplicaStatus.READY: DisplayStatus.ACTIVE,
    **dict.fromkeys((*ENDED, ReplicaStatus.UNHEALTHY, ReplicaStatus.STOPPING), DisplayStatus.FAILED),
}
"""All others are pending."""


def status_of(record: ReplicaRecord, state: SavedReplica) -> ReplicaStatus:
    """The replica's status. What the agent knows (over, being stopped, cannot start) wins over the state file."""
    if record.over:
        return ReplicaStatus.STOPPED
    if record.desired is not Desired.RUNNING:
        return ReplicaStatus.STOPPING
    if record.fault is not None:
        return ReplicaStatus.FAILED
    return ReplicaStatus.PENDING if state.status is ReplicaStatus.UNKNOWN else state.status


def claimed_attempt(state: SavedReplica) -> str | None:
    """The attempt whose server runs, as the state file has it; None when it names none."""
    return state.memory.attempt if state.status in SERVED else None


def between_servers(state: SavedReplica) -> SavedReplica:
    """The state of a replica whose server is gone, and whose babysitter has yet to say so."""
    return replace(state, status=ReplicaStatus.STARTING, endpoint=NOT_SERVING, base_url=None, replica_pid=None)


def waiting(state: SavedReplica, stage: Stage, *, at: str | None) -> SavedReplica:
    """The state of a replica that waits for a scheduler since `at`, whatever its last babysitter wrote."""
    return replace(
        state,
        status=ReplicaStatus.PENDING,
        display_status=DisplayStatus.PENDING,
        endpoint=NOT_SERVING,
        base_url=None,
        replica_pid=None,
        port=None,
        stages=[stage],
        updated_at=at or state.updated_at,
        ready_at=None,
        models=[],
    )


def info(record: ReplicaRecord, state: SavedReplica, request: RequestGlance, *, workdir: str, node: str) -> ReplicaInfo:
    """The whole info.

    Args:
        record: What the agent knows.
        state: What the babysitter wrote last.
        request: The create request.
        workdir: The replica's directory.
        node: This node's name.
    """
    status = status_of(record, state)
    display = DISPLAY.get(status, DisplayStatus.PENDING)
    if status is ReplicaStatus.STOPPING and state.display_status is DisplayStatus.ACTIVE:
        display = DisplayStatus.ACTIVE
    marks = InfoMarks(node=node, deleted=True if record.desired is Desired.DELETED else UNSET)
    members = {name: getattr(state, name) for name in ReplicaMembers.__struct_fields__} | {
        "replica_id": record.replica_id,
        "server_mode": request.server_mode,
        "model_name": request.model_name,
        "status": status,
        "display_status": display,
        "port": state.port or record.port or None,
        "multibox": request.placement.multibox,
        "namespace": request.placement.namespace or NAMESPACE,
        "workdir": workdir,
        "created_at": record.created_at,
        "updated_at": state.updated_at or record.created_at,
        "request_id": record.request_id,
        "metadata": {**request.metadata, **to_builtins(marks)},
    }
    if record.desired is Desired.RUNNING and record.fault is not None:
        members["error_message"] = record.fault
    if status in ENDED:
        members |= {"endpoint": NOT_SERVING, "base_url": None, "replica_pid": None}
    return ReplicaInfo(**members)
