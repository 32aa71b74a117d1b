"""PURE: what a babysitter must not forget between two of its lives, and how it reads it back from doubtful JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from babysitter.run_meta import Ledger, ledger_from_json

TIMELINE_LIMIT = 200


@dataclass(slots=True)
class Memory:
    """The `memory` member of the state file.

    `instance_id` names the replica for ever; `incarnation` rises with each babysitter; `attempt` is the uuid of the
    server's current attempt, written before it is started; `port` is where it was ready last (0: nowhere yet);
    `desired` is `running`, or `stopped` from the moment that somebody asked for a stop; `state` is where the replica was
    last; `stages` are those of the last deployment, `deploying` the uuid of one that is under
    way; `jobs` are the cluster's. Times are ISO 8601.
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
    models: list[dict[str, Any]] = field(default_factory=list)
    created_at: str | None = None
    ready_at: str | None = None
    timeline: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    deploying: str | None = None
    diagnostics: Any = None
    jobs: Ledger = field(default_factory=Ledger)

    def to_json(self) -> dict[str, Any]:
        """For the state file."""
        return {**asdict(self), "jobs": self.jobs.to_json()}

    def remember(self, entry: Mapping[str, Any]) -> None:
        """Add to the timeline, forgetting the oldest entries."""
        self.timeline.append(dict(entry))
        del self.timeline[:-TIMELINE_LIMIT]


def from_json(value: Any) -> Memory:
    """Read what `to_json` wrote; a member that is missing or of another type keeps its default."""
    memory = Memory()
    if not isinstance(value, Mapping):
        return memory
    memory.jobs = ledger_from_json(value.get("jobs"))
    memory.diagnostics = value.get("diagnostics")
    for member in fields(memory):
        if member.name in ("jobs", "diagnostics"):
            continue
        default = getattr(memory, member.name)
        given = value.get(member.name, default)
        kinds = (str, type(None)) if default is None else (type(default),)
        if isinstance(given, kinds) and not isinstance(given, bool):
            setattr(memory, member.name, given)
    memory.models = [model for model in memory.models if isinstance(model, dict)]
    memory.stages = [entry for entry in memory.stages if isinstance(entry, dict)]
    memory.timeline = [entry for entry in memory.timeline if isinstance(entry, dict)]
    return memory
