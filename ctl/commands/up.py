"""`svcctl up`: start a node here, wait until it is ready, say what serves where."""

import asyncio
import time
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from ctl import api, completers
from ctl.api import Api, Place
from ctl.call import Call, Command
from ctl.codes import Code
from ctl.doctor import machine
from ctl.launcher import files, plan, processes, ready
from ctl.launcher.plan import AGENT, BABYSITTER, REGISTRY, ROUTER, Clash, Part, Wanted
from ctl.launcher.ready import Look, State
from ctl.launcher.store import Started, Store
from ctl.live import Board, board
from ctl.problem import Problem
from ctl.table import Table

POLL_S = 0.1
OWN_TIMEOUT_S = 60.0
"""For the processes of the suite themselves, on a slow machine; only servers take long."""
ROUTED_TIMEOUT_S = 10.0
UNDO_TIMEOUT_S = 90.0
PORTS = {REGISTRY: 18000, ROUTER: 8000, AGENT: 18100}


@dataclass(slots=True)
class Launch:
    """What one `up` has done so far."""

    store: Store
    environ: Mapping[str, str]
    started: list[Started] = field(default_factory=list)
    running: list[Started] = field(default_factory=list)
    foreign: list[Part] = field(default_factory=list)
    loading: list[str] = field(default_factory=list)


def add(parser: ArgumentParser) -> None:
    """Flags of `up`."""
    given = parser.add_argument("files", metavar="FILE", nargs="*", help="a babysitter's configuration, per server")
    completers.attach(given, completers.files("toml", "yaml", "yml"))
    parser.add_argument("--demo", action="store_true", help="two mock servers, to try things out")
    parser.add_argument(
        "--demo-port", type=int, default=8001, metavar="PORT", help="of the first; the second is ten higher (8001)"
    )
    for kind, port in PORTS.items():
        parser.add_argument(f"--no-{kind}", action="store_true", help=f"start no {kind} here")
        parser.add_argument(
            f"--{kind}-port", type=int, metavar="PORT", help=f"where the {kind} listens (default: {port})"
        )
        config = parser.add_argument(f"--{kind}-config", metavar="FILE", help=f"the {kind}'s own settings")
        completers.attach(config, completers.files("toml", "yaml", "yml"))
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="how long servers may load (default: 120)"
    )


async def up(call: Call) -> int:
    """Start what does not run yet."""
    store = Store(call.state_dir)
    store.prepare()
    with store.locked():
        parts = planned(call, store)
        launch = Launch(store, call.env)
        async with api.connect() as calls:
            try:
                with board(call.out) as shown:
                    await bring_up(calls, call, launch, parts, shown)
            except (Problem, asyncio.CancelledError, KeyboardInterrupt):
                undo(call, launch)
                raise
    tell(call, launch)
    if launch.loading:
        raise Problem(
            f"still loading: {', '.join(launch.loading)}",
            hint="'svcctl status' shows when it is done",
            code=Code.TIME_IS_UP,
        )
    return Code.OK


def planned(call: Call, store: Store) -> list[Part]:
    """The parts that the command line asks for.

    Raises:
        Problem: A file, or two that want one port.
    """
    args = call.args
    registry = None if args.no_registry else files.service(args.registry_config, args.registry_port, PORTS[REGISTRY])
    router = None
    if not args.no_router:
        router = files.service(args.router_config, args.router_port, PORTS[ROUTER], key="router_port")
    agent = None
    if not args.no_agent and processes.HAS_AGENT:
        agent = files.service(args.agent_config, args.agent_port, PORTS[AGENT])
    # A registry of our own is the one that everything here reports to.
    url = plan.local_url(registry.host, registry.port) if registry else ",".join(call.registry.urls)
    steered = args.registry_port is not None or (registry is None and args.registry_url is not None)
    given = files.replicas(args.files) + (files.demo(store, url, args.demo_port) if args.demo else [])
    try:
        return plan.parts(Wanted(str(store.root), registry, router, agent, tuple(given), url, steered))
    except Clash as error:
        raise Problem(str(error), hint="change a port", code=Code.CONFIG) from error


async def bring_up(calls: Api, call: Call, launch: Launch, parts: Sequence[Part], shown: Board) -> None:
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
        await asyncio.gather(*(wait(calls, launch, started, call.args.timeout, shown) for started in waited))
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
    return {str(model.get("id")) for model in answer.get("data", [])} if isinstance(answer, Mapping) else set()


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
    return isinstance(health, Mapping) and (health.get(part.kind) == "running" or "replicas_total" in health)


async def wait(calls: Api, launch: Launch, started: Started, timeout_s: float, shown: Board) -> None:
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
        if seen.state is State.LOADING and waited_s >= timeout_s:
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


def undo(call: Call, launch: Launch) -> None:
    """End what this run started, the latest first: a half node is of no use."""
    if launch.started:
        call.out.note("stopping what this run started")
        processes.end(launch.started[::-1], launch.store, UNDO_TIMEOUT_S, lambda _started, _how: None)


def tell(call: Call, launch: Launch) -> None:
    """What serves where, and what to try now."""
    fresh = {started.name for started in launch.started}
    if call.out.as_json:
        parts = [{**asdict(started), "already": started.name not in fresh} for started in launch.running]
        elsewhere = [{"name": part.name, "url": part.url, "already": True} for part in launch.foreign]
        call.out.document({"started": parts + elsewhere, "loading": launch.loading, "state_dir": str(call.state_dir)})
        return
    rows = [
        (
            started.name,
            "loading" if started.name in launch.loading else "ready",
            "now" if started.name in fresh else "before",
            str(started.pid),
            started.serves,
        )
        for started in launch.running
    ]
    rows += [(part.name, "ready", "elsewhere", "", part.url) for part in launch.foreign]
    call.out.table(Table(("NAME", "STATE", "STARTED", "PID", "SERVES"), rows, right=frozenset({"PID"})))
    servers = any(started.kind == BABYSITTER for started in launch.running)
    try_now = ["svcctl models", 'svcctl chat MODEL "Hello"', "svcctl top"] if servers else ["svcctl up --demo"]
    call.out.note(f"logs: {launch.store.logs}\ntry: {'   '.join([*try_now, 'svcctl down'])}")


COMMANDS = (
    Command(
        "up",
        "start a node: registry, router, agent, and a babysitter for each FILE",
        up,
        add,
        details="Everything runs detached, with its pid in STATE/run and its log in STATE/logs; what runs already is\n"
        "left alone. Waits until all of it is ready. If something cannot start, what this run started ends again.\n"
        "Exit code 6: a server is still loading when the time is up; it goes on.",
        examples=(
            "svcctl up --demo",
            "svcctl up qwen.toml llama.toml --timeout 1800",
            "svcctl up --no-registry --no-router --registry-url http://head:18000 qwen.toml",
        ),
    ),
)
