"""PURE. How far a replica is, from its infos and its events."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from common.wire.base import JsonObject
from common.wire.replica import Stage
from common.wire.words import NOT_SERVING, ReplicaStatus, StageState
from ctl import answers
from ctl.views.groups import STEPS
from ctl.views.replicas import first_line

ENDS = {
    "ready": frozenset({ReplicaStatus.READY, ReplicaStatus.FAILED, ReplicaStatus.STOPPED}),
    "stopped": frozenset({ReplicaStatus.STOPPED}),
}
"""What ends the wait for a state: no other status can become it by itself."""
JOBS = (("compile_wsjob", "compile"), ("execute_wsjob", "execute"))


@dataclass(slots=True)
class ReplicaProgress:
    """One replica on its way. `stages` are the deployment's, by name.

    `late`: it is past the time that its request or the agent allows, and goes on; `overdue`: it became so while we waited.
    """

    replica_id: str
    status: str = ReplicaStatus.PENDING
    error: str = ""
    endpoint: str = NOT_SERVING
    stalled: bool = False
    late: bool | None = None
    overdue: bool = False
    stages: dict[str, Stage] = field(default_factory=dict)
    jobs: dict[str, Sequence[str]] = field(default_factory=dict)

    def take(self, name: str, data: JsonObject) -> None:
        """An event of its stream; a `snapshot` is a whole info."""
        if name == "stage":
            self._stage(data)
        for stage in data.get("stages") or ():
            self._stage(stage)
        for key, _ in JOBS:
            if isinstance(data.get(key), list):
                self.jobs[key] = [str(job) for job in data[key]]
        if name in ("snapshot", "status"):
            self.status = str(data.get("status") or self.status)
            self.error = str(data.get("error_message") or "")
            self.endpoint = str(data.get("endpoint") or self.endpoint)
            self.stalled = bool(data.get("stalled"))
            late = bool(data.get("late"))
            self.overdue = self.overdue or (late and self.late is False)
            self.late = late
        elif name == "end":
            self.status = str(data.get("status") or self.status)

    def _stage(self, stage: Any) -> None:
        if isinstance(stage, dict) and (read := answers.read(Stage, stage)).name:
            self.stages[read.name] = read

    def reached(self, goal: str) -> bool:
        """There is nothing more to wait for; the wish has come true when `status` is it."""
        return self.status in ENDS[goal] or (self.overdue and goal == "ready")

    @property
    def outcome(self) -> str:
        """How it ended, for the last line of a bar."""
        if self.status == ReplicaStatus.READY:
            return f"ready at {self.endpoint}"
        reason = first_line(self.error)
        return self.status + (f": {reason}" if reason else "")

    @property
    def stage(self) -> str:
        """Where it is, in a few words: the status, and what goes on within it."""
        running = self._running()
        word = self.status.replace("_", " ")
        if self.status == ReplicaStatus.CREATING and running is not None:
            word = f"{word} · {running.name}"
        if self.status in STEPS[2:4]:
            word = next((f"{word} · {kind}" for key, kind in reversed(JOBS) if self.jobs.get(key)), word)
        return f"{word} (its log is silent)" if self.stalled else f"{word} (late)" if self.late else word

    @property
    def detail(self) -> str:
        """The latest news of it."""
        running = self._running()
        if self.status == ReplicaStatus.CREATING and running is not None:
            return " ".join(running.detail.split())[:80]
        return next((str(self.jobs[key][-1]) for key, _ in reversed(JOBS) if self.jobs.get(key)), "")

    @property
    def share(self) -> float | None:
        """Steps done, of all; None while only the cluster knows how long it takes."""
        if self.status not in STEPS or self.status == ReplicaStatus.WAITING_FOR_READY:
            return None
        base = STEPS.index(self.status) / (len(STEPS) - 1)
        done = sum(stage.state in (StageState.DONE, StageState.REUSED) for stage in self.stages.values())
        within = done / (done + 1) if self.status == ReplicaStatus.CREATING and done else 0.0
        return base + within / (len(STEPS) - 1)

    def _running(self) -> Stage | None:
        return next((stage for stage in self.stages.values() if stage.state is StageState.RUNNING), None)
