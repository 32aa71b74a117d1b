"""Whether a process that was started is ready: it listens on its port itself, it answers, and its server serves."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from common.wire.words import ReplicaStatus
from ctl import ports
from ctl.api import Api, Place
from ctl.launcher import processes
from ctl.launcher.plan import BABYSITTER
from ctl.launcher.state_dir import Launched
from ctl.problem import Problem

ASK_S = 3.0
OVER = (ReplicaStatus.FAILED, ReplicaStatus.STOPPED)


class Readiness(Enum):
    """How far a process is. `LOADING`: it answers, its server does not yet."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Observation:
    """How far it is, with the reason in words, and the exit code of a process that has ended, where it is known.

    A reason may have more lines than its first: the end of a server's log.
    """

    readiness: Readiness
    reason: str = ""
    exit_code: int | None = None

    @property
    def first_line(self) -> str:
        """The reason in a line."""
        return self.reason.partition("\n")[0]


async def observe(calls: Api, launched: Launched) -> Observation:
    """How far `launched` is."""
    process = processes.find(launched)
    if process is None:
        code = processes.reap(launched)
        how = "it has ended" if code is None else f"it ended with exit code {code}"
        return Observation(Readiness.ENDED, how, code)
    if not ports.listens(process, launched.own_port):
        return Observation(Readiness.STARTING, "starting")
    try:
        health = await calls.call(Place(launched.name, (launched.url,), ""), "GET", "/health", timeout_s=ASK_S)
    except Problem:
        return Observation(Readiness.STARTING, "listens, but does not answer yet")
    if launched.kind != BABYSITTER:
        return Observation(Readiness.READY)
    return server(health)


def server(health: Mapping[str, object]) -> Observation:
    """What a babysitter's health says of its server."""
    status = str(health.get("status", "?"))
    reason = str(health.get("error_message") or "").strip()
    if status == "healthy":
        return Observation(Readiness.READY)
    why = f": {reason}" if reason else ""
    if status in OVER:
        return Observation(Readiness.FAILED, f"its server has {status}{why}")
    return Observation(Readiness.LOADING, status.replace("_", " ") + why)
