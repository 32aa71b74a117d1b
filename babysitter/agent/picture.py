"""PURE: a replica as the release server shows it (docs/contract.md 5), from its request, its state file, and what is wanted."""

from collections.abc import Mapping
from typing import Any

from babysitter.agent.model import Desired, ReplicaRecord
from common.discovery.replica import REPORTED

ENDED = frozenset({"stopped", "failed"})
SERVED = frozenset({"ready", "unhealthy", "waiting_for_ready"})
DISPLAY = {"ready": "Active", "failed": "Failed", "stopped": "Failed", "unhealthy": "Failed", "stopping": "Failed"}


def status_of(record: ReplicaRecord, told: Mapping[str, Any]) -> str:
    """The replica's status: what is wanted and known to be over wins over what its babysitter wrote last."""
    if record.over:
        return "stopped"
    if record.desired is not Desired.RUNNING:
        return "stopping"
    if record.fault is not None:
        return "failed"
    status = told.get("status")
    return status if isinstance(status, str) else "pending"


def claimed_attempt(told: Mapping[str, Any]) -> str | None:
    """The attempt whose server is said to run; None when the state says of none."""
    memory = told.get("memory")
    attempt = memory.get("attempt") if isinstance(memory, Mapping) else None
    return attempt if told.get("status") in SERVED and isinstance(attempt, str) else None


def between_servers(told: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a replica whose server is gone, and whose babysitter has yet to say so."""
    return {**told, "status": "starting", "endpoint": "NA", "base_url": None, "replica_pid": None}


def info(
    record: ReplicaRecord, told: Mapping[str, Any], request: Mapping[str, Any], *, workdir: str, node: str
) -> dict[str, Any]:
    """The whole info.

    Args:
        record: What the agent knows.
        told: The state file's content, `{}` while there is none.
        request: The create request.
        workdir: The replica's directory.
        node: This node's name.
    """
    status = status_of(record, told)
    given = request.get("placement")
    placement: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    marks = {"node": node, **({"deleted": True} if record.desired is Desired.DELETED else {})}
    shown = {name: told.get(name, default) for name, default in REPORTED.items()}
    found = {
        "replica_id": record.replica_id,
        "server_mode": request.get("server_mode"),
        "model_name": request.get("model_name"),
        "status": status,
        "display_status": DISPLAY.get(status, "Pending"),
        "endpoint": told.get("endpoint", "NA"),
        **shown,
        "port": told.get("port") or record.port,
        "multibox": placement.get("multibox"),
        "namespace": placement.get("namespace") or "inf-integ",
        "workdir": workdir,
        "created_at": record.created_at,
        "updated_at": shown["updated_at"] or record.created_at,
        "request_id": record.request_id,
        "metadata": {**(request.get("metadata") or {}), **marks},
    }
    if record.desired is Desired.RUNNING and record.fault is not None:
        found["error_message"] = record.fault
    if status == "stopping" and told.get("display_status") == "Active":
        found["display_status"] = "Active"
    if status in ENDED:
        found.update(endpoint="NA", base_url=None, replica_pid=None)
    return found
