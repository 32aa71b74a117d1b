"""PURE: what the agent itself must remember of a replica, as it stands in `agent.json`."""

from enum import StrEnum
from typing import Annotated

import msgspec

from common.names import is_replica_id
from common.wire.create import RequestGlance

LAST_PORT = 65_534
Port = Annotated[int, msgspec.Meta(ge=0, le=LAST_PORT)]


class Desired(StrEnum):
    """The state that was asked for. It only ever moves down this list."""

    RUNNING = "running"
    STOPPED = "stopped"
    DELETED = "deleted"


class ReplicaRecord(msgspec.Struct):
    """One replica of this node.

    `port` is the server's (0: it is chosen where the server will run); the babysitter has the next one, and both are
    reserved until the replica is `over`: stopped for good, with nothing of it left that runs. So are its `accelerators`:
    alone, or `accelerator_mb` of each where they are shared; `env` tells its server of them. `digest` tells two requests of
    one `request_id` apart. `fault` is why its babysitter cannot be started. `job` are the options of its job where a
    scheduler runs it, `job_id` is its last one's (0: none is known). A member of a group has a `group`: its rank and how many
    there are; it is `begun` once it was told of all. The leader's has a `rendezvous_port` as well. Times are ISO 8601.
    """

    replica_id: str
    port: Port
    request_id: str
    digest: str
    created_at: str
    desired: Desired = Desired.RUNNING
    force: bool = False
    over: bool = False
    fault: str | None = None
    accelerators: list[int] = []
    accelerator_mb: int = 0
    env: dict[str, str] = {}
    job: dict[str, str] = {}
    job_id: int = 0
    group: tuple[int, int] | None = None
    begun: bool = False
    rendezvous_port: Port = 0

    @property
    def ports(self) -> tuple[int, ...]:
        """All that it has reserved."""
        return tuple(port for port in (self.port, self.port + 1, self.rendezvous_port) if port > 1)

    @property
    def is_waiting(self) -> bool:
        """It is reserved, and does not begin before the others of its group are."""
        return self.group is not None and not self.begun

    def __post_init__(self) -> None:
        """The id becomes a path (E4)."""
        if not is_replica_id(self.replica_id):
            raise ValueError(f"{self.replica_id!r} is no replica id")


class RemovedReplica(ReplicaRecord):
    """A replica whose directory is gone, as it stands in `state/{id}.gone.json`, with what is shown of its request."""

    request: RequestGlance = RequestGlance()


def read_record(content: object) -> ReplicaRecord | None:
    """The record in a file's content; None for anything else. What a later version added is ignored."""
    try:
        return msgspec.convert(content, ReplicaRecord)
    except msgspec.ValidationError:
        return None
