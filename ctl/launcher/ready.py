"""Whether a process that was started is ready: it listens on its port itself, it answers, and its server serves."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from ctl.api import Api, Place
from ctl.launcher import processes
from ctl.launcher.plan import BABYSITTER
from ctl.launcher.store import Started
from ctl.problem import Problem

ASK_S = 3.0
OVER = frozenset({"failed", "stopped"})


class State(Enum):
    """How far a process is. `LOADING`: it answers, its server does not yet."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen, with the reason in words."""

    state: State
    said: str = ""


async def look(calls: Api, started: Started) -> Look:
    """How far `started` is."""
    process = processes.find(started)
    if process is None:
        code = processes.reap(started)
        return Look(State.ENDED, "it has ended" if code is None else f"it ended with exit code {code}")
    if not processes.listens(process, started.port):
        return Look(State.STARTING, "starting")
    try:
        health = await calls.call(Place(started.name, (started.url,), ""), "GET", "/health", timeout_s=ASK_S)
    except Problem:
        return Look(State.STARTING, "listens, but does not answer yet")
    if started.kind != BABYSITTER:
        return Look(State.READY)
    return server(health)


def server(health: Mapping[str, object]) -> Look:
    """What a babysitter's health says of its server."""
    status = str(health.get("status", "?"))
    reason = str(health.get("error_message") or "").strip()
    if status == "healthy":
        return Look(State.READY)
    why = f": {reason.splitlines()[0]}" if reason else ""
    if status in OVER:
        return Look(State.FAILED, f"its server has {status}{why}")
    return Look(State.LOADING, status.replace("_", " ") + why)
