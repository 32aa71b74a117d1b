"""PURE: what a babysitter must not forget between two of its lives, and the file's content that holds it."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import field

from babysitter.run_meta import Ledger
from common.wire.base import ModelObject
from common.wire.read import read_lenient
from common.wire.replica import ReplicaReport, Stage, Transition

TIMELINE_LIMIT = 200


class Memory(msgspec.Struct, kw_only=True):
    """The `memory` member of the state file.

    `instance_id` names the replica for ever; `incarnation` rises with each babysitter; `attempt` is the uuid of the
    server's current attempt, written before it is started, `attempts` how many there were; `port` is where it was ready
    last (0: nowhere yet); `desired` is `running`, or `stopped` from the moment that somebody asked for a stop; `state`
    is where the replica was last; `stages` are those of the last deployment, `deploying` the uuid of one that is under
    way; `jobs` are the cluster's; `adapters` the latest word on each: is it to be loaded? Times are ISO 8601.
    """

    instance_id: str = ""
    incarnation: int = 0
    desired: str = "running"
    state: str = ""
    attempt: str | None = None
    attempts: int = 0
    port: int = 0
    restarts: int = 0
    spent: int = 0
    failures: int = 0
    models: list[ModelObject] = []
    created_at: str | None = None
    ready_at: str | None = None
    timeline: list[Transition] = []
    stages: list[Stage] = []
    deploying: str | None = None
    diagnostics: Any = None
    jobs: Ledger = field(default_factory=Ledger)
    adapters: dict[str, bool] = {}

    def remember(self, transition: Transition) -> None:
        """Add to the timeline, forgetting the oldest entries."""
        self.timeline.append(transition)
        del self.timeline[:-TIMELINE_LIMIT]


class SavedReplica(ReplicaReport, frozen=True, kw_only=True):
    """The state file's content: the report as it was when the file was written, and the memory."""

    memory: Memory = field(default_factory=Memory)


def read_memory(content: Mapping[str, object]) -> Memory:
    """The memory in a state file's content; a member that is missing or of another type keeps its default."""
    members = content.get("memory")
    return read_lenient(Memory, members) if isinstance(members, Mapping) else Memory()


def read_saved(content: Mapping[str, object]) -> SavedReplica | None:
    """The whole content, as `read_memory` does; None when it is of no replica."""
    try:
        return read_lenient(SavedReplica, {**content, "memory": read_memory(content)})
    except msgspec.ValidationError:
        return None


def new_memory(memory: Memory, *, instance_id: str, epoch_s: int, now: str) -> Memory:
    """The memory of a babysitter that begins: a replica keeps its name, each life has a higher incarnation (C6)."""
    memory.instance_id = memory.instance_id or instance_id
    memory.incarnation = max(memory.incarnation + 1, epoch_s)
    memory.created_at = memory.created_at or now
    return memory
