"""One launch: the parts started in order, awaited, and undone when one of them cannot start."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.discovery.model_list import parse_models
from ctl import ports
from ctl.api import Api, Place
from ctl.codes import Code
from ctl.launcher import processes, ready
from ctl.launcher.plan import AGENT, BABYSITTER, ROUTER, Part
from ctl.launcher.ready import Observation, Readiness
from ctl.launcher.state_dir import Launched, StateDir
from ctl.problem import Problem
from ctl.progress import ProgressBoard

POLL_S = 0.1
UNDO_TIMEOUT_S = 90.0
TAIL_LINES = 15


class CannotStart(Problem):
    """A part did not come up.

    Args:
        part: Which.
        message: What is wrong.
        hint: What to do next.
        code: The exit code of svcctl.
        ended_with: The exit code of the process, or 1.
        tail: The last lines that it, or its server, wrote.
    """

    def __init__(
        self,
        part: Part,
        message: str,
        *,
        hint: str,
        code: Code = Code.FAILED,
        ended_with: int = 1,
        tail: Sequence[str] = (),
    ) -> None:
        super().__init__(f"{part.name}: {message}", hint=hint, code=code)
        self.part = part
        self.ended_with = ended_with
        self.tail = tail


@dataclass(slots=True)
class Launch:
    """What one launch has done so far.

    Args:
        state: Where it is remembered.
        environ: What the processes get.
        timeout_s: How long servers may load.
        folder: Where the processes work; None: beside their files.
        for_scripts: As the launch scripts do it: a babysitter that cannot start takes nothing else down, and a service
            that somebody else started is a taken port.
    """

    state: StateDir
    environ: Mapping[str, str]
    timeout_s: float
    folder: Path | None = None
    for_scripts: bool = False
    started: list[Launched] = field(default_factory=list)
    running: dict[str, Launched] = field(default_factory=dict)
    foreign: list[Part] = field(default_factory=list)
    loading: list[str] = field(default_factory=list)
    failed: list[CannotStart] = field(default_factory=list)

    def ready(self, kind: str) -> list[Launched]:
        """Those of one kind that are ready."""
        out = (*self.loading, *(failure.part.name for failure in self.failed))
        return [one for name, one in self.running.items() if one.kind == kind and name not in out]


async def bring_up(calls: Api, launch: Launch, parts: Sequence[Part], shown: ProgressBoard) -> None:
    """All at once: whoever needs the registry asks again until it is there.

    Raises:
        CannotStart: A port is taken, a process ended, or a server has failed.
    """
    for part in parts:
        await _tolerated(launch, part, start(calls, launch, part, shown))
    waited = [part for part in parts if part.name in launch.running]
    await asyncio.gather(*(_tolerated(launch, part, wait(calls, launch, part, shown)) for part in waited))


async def _tolerated(launch: Launch, part: Part, work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except CannotStart as failure:
        if not launch.for_scripts or part.kind != BABYSITTER:
            raise
        launch.failed.append(failure)


async def routed(calls: Api, launch: Launch, timeout_s: float) -> str:
    """Wait until the router lists the models of every server that is ready; why it does not, or nothing."""
    routers, babysitters = launch.ready(ROUTER), launch.ready(BABYSITTER)
    deadline = time.monotonic() + timeout_s
    reason = ""
    while routers and babysitters:
        try:
            served = set().union(*[await models(calls, one.url) for one in babysitters])
            missing = served - await models(calls, routers[0].url)
            reason = f"it does not list {', '.join(sorted(missing))} yet"
            if not missing:
                return ""
        except Problem as problem:
            reason = problem.message
            if problem.code is Code.REFUSED:
                return "it asks for an API key, so whether it routes to every server was not checked"
        if time.monotonic() >= deadline:
            return reason
        await asyncio.sleep(POLL_S)
    return ""


async def models(calls: Api, url: str) -> set[str]:
    """Ids of the models listed at `url`; none where there is no list yet.

    Raises:
        Problem: No answer, or one that is no success.
    """
    text = await calls.text(Place(url, (url,), ""), "/models")
    try:
        return {str(model["id"]) for model in parse_models(text.encode())}
    except ValueError:
        return set()


async def start(calls: Api, launch: Launch, part: Part, shown: ProgressBoard) -> None:
    """Start `part`, unless it runs: ours is left alone, another one that answers is used as it is.

    Raises:
        CannotStart: It runs elsewhere, or a stranger has its port.
    """
    before = launch.state.get(part.name)
    if before is not None and (process := processes.find(before)) is not None:
        if before.own_port != part.port:
            elsewhere = f"already runs at {before.url} (pid {process.pid}), not at {part.url}"
            raise CannotStart(part, elsewhere, hint="stop it first: 'svcctl down' or ./script/stop_all.sh")
        launch.running[part.name] = before
        shown.show(part.name, f"runs already (pid {process.pid})")
        return
    if (holder := ports.holder(part.port)) is not None:
        if part.kind != BABYSITTER and not launch.for_scripts and await answers(calls, part):
            launch.foreign.append(part)
            shown.end(part.name, f"answers already at {part.url}, started by somebody else; used as it is")
            return
        hint = "stop it, or choose another port"
        raise CannotStart(
            part, f"port {part.port} is taken by {holder}", hint=hint, code=Code.CONFIG, ended_with=Code.CONFIG
        )
    folder = launch.folder or (Path(part.config).parent if part.config else launch.state.root)
    launched = processes.spawn(part, launch.state, launch.environ, folder)
    launch.started.append(launched)
    launch.running[part.name] = launched
    shown.show(part.name, "starting", detail=f"{part.url} (pid {launched.pid}, log {launched.log})")


async def answers(calls: Api, part: Part) -> bool:
    """A service of the suite, of this kind, answers there."""
    try:
        health = await calls.call(Place(part.name, (part.url,), ""), "GET", "/health", timeout_s=ready.ASK_S)
    except Problem:
        return False
    return "node" in health if part.kind == AGENT else health.get(part.kind) == "running"


async def wait(calls: Api, launch: Launch, part: Part, shown: ProgressBoard) -> None:
    """Wait until `part` is ready; a server that is still loading when the time is up is left to load.

    Raises:
        CannotStart: It ended, has failed, or does not answer at all.
    """
    launched = launch.running[part.name]
    began = time.monotonic()
    while True:
        now = await ready.observe(calls, launched)
        waited_s = time.monotonic() - began
        if now.readiness is Readiness.READY:
            shown.end(part.name, f"ready at {launched.url}")
            return
        silent = now.readiness is Readiness.STARTING and waited_s > part.patience_s
        if silent or now.readiness in (Readiness.ENDED, Readiness.FAILED):
            shown.end(part.name, now.first_line, well=False)
            raise broken(part, launched, now)
        if now.readiness is Readiness.LOADING and waited_s >= launch.timeout_s:
            launch.loading.append(part.name)
            shown.end(part.name, f"still loading: {now.first_line}", well=False)
            return
        shown.show(part.name, now.first_line)
        await asyncio.sleep(POLL_S)


def broken(part: Part, launched: Launched, now: Observation) -> CannotStart:
    """What an operator needs of a process that did not come up: its last words."""
    tail = now.reason.splitlines()[1:] or processes.last_lines(launched, TAIL_LINES)
    last = f"; it said: {tail[-1][:300]}" if tail else ""
    reason = f"it did not answer in time ({now.reason})" if now.readiness is Readiness.STARTING else now.first_line
    hint = f"its log is {launched.log}"
    return CannotStart(part, f"{reason}{last}", hint=hint, ended_with=now.exit_code or 1, tail=tail)


def undo(launch: Launch, tell: Callable[[Launched, str], None], timeout_s: float = UNDO_TIMEOUT_S) -> None:
    """End what this run started, the latest first: a half node is of no use."""
    processes.end(launch.started[::-1], launch.state, timeout_s, tell)
