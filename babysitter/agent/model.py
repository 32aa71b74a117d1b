"""PURE: what the agent itself must remember of a replica, and how it reads it back from doubtful JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from common.names import is_replica_id

LAST_PORT = 65_534


class Desired(StrEnum):
    """What is to become of a replica. It only ever moves down this list."""

    RUNNING = "running"
    STOPPED = "stopped"
    DELETED = "deleted"


@dataclass(slots=True)
class ReplicaRecord:
    """One replica of this node.

    `port` is the server's; the babysitter has the next one, and both are reserved until the replica is `over`: stopped
    for good, with nothing of it left that runs. `digest` tells two requests of one `request_id` apart. `fault` is why its
    babysitter cannot be started. Times are ISO 8601.
    """

    replica_id: str
    port: int
    request_id: str
    digest: str
    created_at: str
    desired: Desired = Desired.RUNNING
    force: bool = False
    over: bool = False
    fault: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For `agent.json`."""
        return {**asdict(self), "desired": self.desired.value}


def record_from_json(value: Any) -> ReplicaRecord | None:
    """Read what `to_json` gave; None for anything else."""
    if not isinstance(value, Mapping):
        return None
    kinds: dict[str, type] = {"port": int, "force": bool, "over": bool}
    members = {member.name: value.get(member.name) for member in fields(ReplicaRecord)}
    for name, member in members.items():
        if name == "fault":
            if not isinstance(member, str | None):
                return None
        elif type(member) is not kinds.get(name, str):
            return None
    try:
        record = ReplicaRecord(**{**members, "desired": Desired(members["desired"])})  # type: ignore[arg-type] # judged above
    except ValueError:
        return None
    return record if is_replica_id(record.replica_id) and 0 < record.port <= LAST_PORT else None
