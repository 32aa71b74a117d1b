"""`svcctl up`: start a node here, wait until it is ready, say what serves where."""

import asyncio
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from common import own_python
from ctl import completers
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.launcher import files, launch, plan, processes
from ctl.launcher.launch import Launch
from ctl.launcher.plan import AGENT, BABYSITTER, PORTS, REGISTRY, ROUTER, Clash, Listener, NodePlan, Part
from ctl.launcher.state_dir import StateDir
from ctl.live import board
from ctl.problem import Problem
from ctl.table import TextTable

ROUTED_TIMEOUT_S = 10.0
"""So that the next command finds the models; a router that takes longer has its reasons."""


def add(parser: ArgumentParser) -> None:
    """Flags of `up`."""
    files_ = parser.add_argument("files", metavar="FILE", nargs="*", help="a babysitter's configuration, per server")
    completers.attach(files_, completers.files("toml", "yaml", "yml"))
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
    state = StateDir(call.state_dir)
    state.prepare()
    async with state.locked():
        parts = planned(call, state)
        run = Launch(state, call.env, call.args.timeout, own_python.CHECKOUT)
        async with call.connect() as calls:
            try:
                with board(call.out) as shown:
                    await launch.bring_up(calls, run, parts, shown)
                await launch.routed(calls, run, ROUTED_TIMEOUT_S)
            except (Problem, asyncio.CancelledError, KeyboardInterrupt):
                if run.started:
                    call.out.note("stopping what this run started")
                    launch.undo(run, lambda _launched, _how: None)
                raise
    report(call, run, parts)
    if run.loading:
        raise Problem(
            f"still loading: {', '.join(run.loading)}",
            hint="'svcctl status' shows when it is done",
            code=Code.TIME_IS_UP,
        )
    return Code.OK


def planned(call: Call, state: StateDir) -> list[Part]:
    """The parts that the command line asks for.

    Raises:
        Problem: A file, or two that want one port.
    """
    args = call.args
    registry, router, agent = (
        None if getattr(args, f"no_{kind}") else place(call, state, kind) for kind in (REGISTRY, ROUTER, AGENT)
    )
    # A registry of our own is the one that everything here reports to.
    url = plan.local_url(registry.host, registry.port, registry.scheme) if registry else ",".join(call.registry.urls)
    steered = (
        (registry.port, registry.scheme) != (PORTS[REGISTRY], "http") if registry else args.registry_url is not None
    )
    babysitters = [files.babysitter(Path(file), call.env) for file in args.files]
    if args.demo:
        babysitters += files.demo(state.root, url, args.demo_port, call.env)
    folder = None if state.root == own_python.CHECKOUT else str(state.root)
    try:
        return plan.parts(NodePlan(folder, registry, router, agent, tuple(babysitters), url, steered))
    except Clash as error:
        raise Problem(str(error), hint="change a port", code=Code.CONFIG) from error


def place(call: Call, state: StateDir, kind: str) -> Listener:
    """Where a service is to listen: as the flags and its file say, else where it runs already, else at the usual port."""
    running = state.get(kind)
    usual = Listener(PORTS[kind])
    if running is not None and processes.find(running) is not None:
        usual = Listener(running.port, urlsplit(running.url).hostname or usual.host)
    flags = vars(call.args)
    return files.listener(flags[f"{kind}_config"], flags[f"{kind}_port"], usual, kind=kind, env=call.env)


def report(call: Call, run: Launch, parts: Sequence[Part]) -> None:
    """What serves where, and what to try now."""
    fresh = {launched.name for launched in run.started}
    running = [run.running[part.name] for part in parts if part.name in run.running]
    if call.out.as_json:
        here = [{**asdict(launched), "already": launched.name not in fresh} for launched in running]
        elsewhere = [{"name": part.name, "url": part.url, "already": True} for part in run.foreign]
        call.out.document({"started": here + elsewhere, "loading": run.loading, "state_dir": str(run.state.root)})
        return
    rows = [
        (
            launched.name,
            "loading" if launched.name in run.loading else "ready",
            "now" if launched.name in fresh else "before",
            str(launched.pid),
            launched.serves,
        )
        for launched in running
    ]
    rows += [(part.name, "ready", "elsewhere", "", part.url) for part in run.foreign]
    call.out.table(TextTable(("NAME", "STATE", "STARTED", "PID", "SERVES"), rows, right=frozenset({"PID"})))
    servers = any(launched.kind == BABYSITTER for launched in running)
    try_now = ["svcctl models", 'svcctl chat MODEL "Hello"', "svcctl top"] if servers else ["svcctl up --demo"]
    call.out.note(f"logs: {run.state.logs}\ntry: {'   '.join([*try_now, 'svcctl down'])}")


COMMANDS = (
    Command(
        "up",
        up,
        add,
        details="Everything runs detached, with its pid and its log in STATE/logs; what runs already, also what the\n"
        "launch scripts started, is left alone. Waits until all of it is ready. If something cannot start, what this run started ends again.\n"
        "Exit code 6: a server is still loading when the time is up; it goes on.",
        examples=(
            "svcctl up --demo",
            "svcctl up qwen.toml llama.toml --timeout 1800",
            "svcctl up --no-registry --no-router --registry-url http://head:18000 qwen.toml",
        ),
    ),
)
