"""One launch: the parts started in order, awaited, and undone when one of them cannot start."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ctl.api import Api, Place
from ctl.codes import Code
from ctl.doctor import machine
from ctl.launcher import processes, ready
from ctl.launcher.plan import AGENT, BABYSITTER, REGISTRY, ROUTER, Part
from ctl.launcher.ready import Look, State
from ctl.launcher.store import Started, Store
from ctl.live import Board
from ctl.problem import Problem

POLL_S = 0.1
OWN_TIMEOUT_S = 60.0
"""For the processes of the suite themselves, on a slow machine; only servers take long."""
ROUTED_TIMEOUT_S = 10.0
UNDO_TIMEOUT_S = 90.0


@dataclass(slots=True)
class Launch:
    """What one `up` has done so far. `timeout_s` is how long servers may load."""

    store: Store
    environ: Mapping[str, str]
    timeout_s: float
    started: list[Started] = field(default_factory=list)
    running: list[Started] = field(default_factory=list)
    foreign: list[Part] = field(default_factory=list)
    loading: list[str] = field(default_factory=list)


async def bring_up(calls: Api, launch: Launch, parts: Sequence[Part], shown: Board) -> None:
    """The registry first, then everything else at once.

    Raises:
        Problem: A port is taken, a process ended, or a server has failed.
    """
    for first in (True, False):
        group = [part for part in parts if (part.kind == REGISTRY) is first]
        for part in group:
            await start(calls, launch, part, shown)
        names = {part.name for part in group}
        waited = [started for started in launch.running if started.name in names]
        await asyncio.gather(*(wait(calls, launch, started, shown) for started in waited))
    await routed(calls, launch)


async def routed(calls: Api, launch: Launch) -> None:
    """A moment for the router to hear of the servers that are ready, so that the next command finds their models."""
    router = next((started for started in launch.running if started.kind == ROUTER), None)
    sitters = [one for one in launch.running if one.kind == BABYSITTER and one.name not in launch.loading]
    deadline = time.monotonic() + ROUTED_TIMEOUT_S
    while router is not None and sitters and time.monotonic() < deadline:
        try:
            wanted = [await models(calls, sitter) for sitter in sitters]
            if set().union(*wanted) <= await models(calls, router):
                return
        except Problem as problem:
            if problem.code is Code.REFUSED:  # it wants a key, and has its reasons
                return
        await asyncio.sleep(POLL_S)


async def models(calls: Api, started: Started) -> set[str]:
    """Ids of the models that it lists."""
    answer = await calls.call(Place(started.name, (started.url,), ""), "GET", "/models", timeout_s=ready.ASK_S)
    return {str(model.get("id")) for model in answer.get("data", [])}


async def start(calls: Api, launch: Launch, part: Part, shown: Board) -> None:
    """Start `part`, unless it runs: ours is left alone, another one that answers is used as it is.

    Raises:
        Problem: It runs elsewhere, or a stranger has its port.
    """
    known = launch.store.get(part.name)
    if known is not None and (process := processes.find(known)) is not None:
        if known.url != part.url:
            raise Problem(f"{part.name} already runs at {known.url}, not at {part.url}", hint="'svcctl down' first")
        launch.running.append(known)
        shown.show(part.name, f"runs already (pid {process.pid})")
        return
    if (holder := machine.holder(part.port)) is not None:
        if part.kind != BABYSITTER and await answers(calls, part):
            launch.foreign.append(part)
            shown.end(part.name, f"answers already at {part.url}, started by somebody else; used as it is")
            return
        raise Problem(
            f"{part.name}: port {part.port} is held by {holder}",
            hint="stop it, or choose another port",
            code=Code.CONFIG,
        )
    started = processes.spawn(part, launch.store, launch.environ)
    launch.started.append(started)
    launch.running.append(started)
    shown.show(part.name, "starting", detail=part.url)


async def answers(calls: Api, part: Part) -> bool:
    """A service of the suite, of this kind, answers there."""
    try:
        health = await calls.call(Place(part.name, (part.url,), ""), "GET", "/health", timeout_s=ready.ASK_S)
    except Problem:
        return False
    return "node" in health if part.kind == AGENT else health.get(part.kind) == "running"


async def wait(calls: Api, launch: Launch, started: Started, shown: Board) -> None:
    """Wait until `started` is ready; a server that is still loading when the time is up is left to load.

    Raises:
        Problem: It ended, has failed, or does not answer at all.
    """
    began = time.monotonic()
    while True:
        seen = await ready.look(calls, started)
        waited_s = time.monotonic() - began
        if seen.state is State.READY:
            shown.end(started.name, f"ready at {started.url}")
            return
        if seen.state in (State.ENDED, State.FAILED) or (seen.state is State.STARTING and waited_s > OWN_TIMEOUT_S):
            shown.end(started.name, seen.said, well=False)
            raise broken(started, seen)
        if seen.state is State.LOADING and waited_s >= launch.timeout_s:
            launch.loading.append(started.name)
            shown.end(started.name, f"still loading: {seen.said}", well=False)
            return
        shown.show(started.name, seen.said)
        await asyncio.sleep(POLL_S)


def broken(started: Started, seen: Look) -> Problem:
    """What an operator needs of a process that did not come up: its last words."""
    last = [line for line in processes.log_tail(started) if line.strip()]
    said = f"; it said: {last[-1][:300]}" if last else ""
    return Problem(f"{started.name}: {seen.said}{said}", hint=f"its log is {started.log}")


def undo(launch: Launch) -> None:
    """End what this run started, the latest first: a half node is of no use."""
    processes.end(launch.started[::-1], launch.store, UNDO_TIMEOUT_S, lambda _started, _how: None)
