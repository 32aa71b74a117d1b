"""PURE: a replica as the release server shows it (docs/contract.md 5), from its request, its state file, and what is wanted."""

from collections.abc import Mapping
from typing import Any

from babysitter.agent.model import Desired, ReplicaRecord
from common.discovery.replica import REPORTED

ENDED = frozenset({"stopped", "failed"})
SERVED = frozenset({"ready", "unhealthy", "waiting_for_ready"})
DISPLAY = {"ready": "Active", "failed": "Failed", "stopped": "Failed", "unhealthy": "Failed", "stopping": "Failed"}


def status_of(record: ReplicaRecord, state: Mapping[str, Any]) -> str:
    """The replica's status: what is wanted and known to be over wins over what its babysitter wrote last."""
    if record.over:
        return "stopped"
    if record.desired is not Desired.RUNNING:
        return "stopping"
    if record.fault is not None:
        return "failed"
    status = state.get("status")
    return status if isinstance(status, str) else "pending"


def claimed_attempt(state: Mapping[str, Any]) -> str | None:
    """The attempt whose server is said to run; None when the state says of none."""
    memory = state.get("memory")
    attempt = memory.get("attempt") if isinstance(memory, Mapping) else None
    return attempt if state.get("status") in SERVED and isinstance(attempt, str) else None


def between_servers(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a replica whose server is gone, and whose babysitter has yet to say so."""
    return {**state, "status": "starting", "endpoint": "NA", "base_url": None, "replica_pid": None}


def info(
    record: ReplicaRecord, state: Mapping[str, Any], request: Mapping[str, Any], *, workdir: str, node: str
) -> dict[str, Any]:
    """The whole info.

    Args:
        record: What the agent knows.
        state: The state file's content, `{}` while there is none.
        request: The create request.
        workdir: The replica's directory.
        node: This node's name.
    """
    status = status_of(record, state)
    placement_member = request.get("placement")
    placement: Mapping[str, Any] = placement_member if isinstance(placement_member, Mapping) else {}
    marks = {"node": node, **({"deleted": True} if record.desired is Desired.DELETED else {})}
    reported = {name: state.get(name, default) for name, default in REPORTED.items()}
    shown = {
        "replica_id": record.replica_id,
        "server_mode": request.get("server_mode"),
        "model_name": request.get("model_name"),
        "status": status,
        "display_status": DISPLAY.get(status, "Pending"),
        "endpoint": state.get("endpoint", "NA"),
        **reported,
        "port": state.get("port") or record.port,
        "multibox": placement.get("multibox"),
        "namespace": placement.get("namespace") or "inf-integ",
        "workdir": workdir,
        "created_at": record.created_at,
        "updated_at": reported["updated_at"] or record.created_at,
        "request_id": record.request_id,
        "metadata": {**(request.get("metadata") or {}), **marks},
    }
    if record.desired is Desired.RUNNING and record.fault is not None:
        shown["error_message"] = record.fault
    if status == "stopping" and state.get("display_status") == "Active":
        shown["display_status"] = "Active"
    if status in ENDED:
        shown.update(endpoint="NA", base_url=None, replica_pid=None)
    return shown
