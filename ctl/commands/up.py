"""`svcctl up`: start a node here, wait until it is ready, say what serves where."""

import asyncio
from argparse import ArgumentParser
from dataclasses import asdict
from urllib.parse import urlsplit

from ctl import api, completers
from ctl.call import Call, Command
from ctl.codes import Code
from ctl.launcher import files, launch, plan, processes
from ctl.launcher.launch import Launch
from ctl.launcher.plan import AGENT, BABYSITTER, REGISTRY, ROUTER, Clash, Part, Service, Wanted
from ctl.launcher.store import Store
from ctl.live import board
from ctl.problem import Problem
from ctl.table import Table

PORTS = {REGISTRY: 18000, ROUTER: 8000, AGENT: 18100}


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
        run = Launch(store, call.env, call.args.timeout)
        async with api.connect() as calls:
            try:
                with board(call.out) as shown:
                    await launch.bring_up(calls, run, parts, shown)
            except (Problem, asyncio.CancelledError, KeyboardInterrupt):
                if run.started:
                    call.out.note("stopping what this run started")
                    launch.undo(run)
                raise
    tell(call, run)
    if run.loading:
        raise Problem(
            f"still loading: {', '.join(run.loading)}",
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
    registry = None if args.no_registry else place(call, store, REGISTRY)
    router = None if args.no_router else place(call, store, ROUTER)
    agent = place(call, store, AGENT) if processes.HAS_AGENT and not args.no_agent else None
    # A registry of our own is the one that everything here reports to.
    url = plan.local_url(registry.host, registry.port) if registry else ",".join(call.registry.urls)
    steered = registry.port != PORTS[REGISTRY] if registry else args.registry_url is not None
    given = files.replicas(args.files) + (files.demo(store, url, args.demo_port) if args.demo else [])
    try:
        return plan.parts(Wanted(str(store.root), registry, router, agent, tuple(given), url, steered))
    except Clash as error:
        raise Problem(str(error), hint="change a port", code=Code.CONFIG) from error


def place(call: Call, store: Store, kind: str) -> Service:
    """Where a service is wanted: as the flags and its file say, else where it runs already, else at the usual port."""
    known = store.get(kind)
    usual = Service(PORTS[kind])
    if known is not None and processes.find(known) is not None:
        usual = Service(known.port, urlsplit(known.url).hostname or usual.host)
    flags = vars(call.args)
    return files.service(flags[f"{kind}_config"], flags[f"{kind}_port"], usual, key=f"{kind}_port")


def tell(call: Call, run: Launch) -> None:
    """What serves where, and what to try now."""
    fresh = {started.name for started in run.started}
    if call.out.as_json:
        parts = [{**asdict(started), "already": started.name not in fresh} for started in run.running]
        elsewhere = [{"name": part.name, "url": part.url, "already": True} for part in run.foreign]
        call.out.document({"started": parts + elsewhere, "loading": run.loading, "state_dir": str(call.state_dir)})
        return
    rows = [
        (
            started.name,
            "loading" if started.name in run.loading else "ready",
            "now" if started.name in fresh else "before",
            str(started.pid),
            started.serves,
        )
        for started in run.running
    ]
    rows += [(part.name, "ready", "elsewhere", "", part.url) for part in run.foreign]
    call.out.table(Table(("NAME", "STATE", "STARTED", "PID", "SERVES"), rows, right=frozenset({"PID"})))
    servers = any(started.kind == BABYSITTER for started in run.running)
    try_now = ["svcctl models", 'svcctl chat MODEL "Hello"', "svcctl top"] if servers else ["svcctl up --demo"]
    call.out.note(f"logs: {run.store.logs}\ntry: {'   '.join([*try_now, 'svcctl down'])}")


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
