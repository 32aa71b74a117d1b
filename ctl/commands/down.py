"""`svcctl down`: end what `up` started here, and nothing else."""

import asyncio
import time
from argparse import ArgumentParser
from contextlib import suppress

from ctl import api
from ctl.api import Api, Place
from ctl.call import Call, Command
from ctl.codes import Code
from ctl.follow import path_of
from ctl.launcher import processes
from ctl.launcher.plan import AGENT, BABYSITTER, REGISTRY, ROUTER
from ctl.launcher.store import Started, Store
from ctl.problem import Problem

ORDER = (BABYSITTER, AGENT, ROUTER, REGISTRY)
POLL_S = 0.25


def add(parser: ArgumentParser) -> None:
    """Flags of `down`."""
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these, as 'svcctl status' names them")
    parser.add_argument("--replicas", action="store_true", help="also stop every replica of the agent")
    parser.add_argument(
        "--timeout", type=float, default=90.0, metavar="S", help="before what is left is killed (default: 90)"
    )


async def down(call: Call) -> int:
    """End it, servers first, so that nothing is asked of a server that is going."""
    store = Store(call.state_dir)
    known = store.all()
    chosen = [started for started in known if not call.args.names or started.name in call.args.names]
    if not chosen:
        call.out.note("nothing of that runs" if call.args.names else f"nothing was started from {store.root}")
        if call.out.as_json:
            call.out.document({"stopped": []})
        return Code.NOT_FOUND if call.args.names else Code.OK
    told: list[dict[str, str]] = []
    clean = True
    with store.locked():
        for kind in ORDER:
            group = [started for started in chosen if started.kind == kind]
            if kind == AGENT and group and processes.find(group[0]) is not None:
                await replicas(call, group[0])
            clean = end(call, store, group, told) and clean
    if call.out.as_json:
        call.out.document({"stopped": told})
    return Code.OK if clean else Code.FAILED


def end(call: Call, store: Store, group: list[Started], told: list[dict[str, str]]) -> bool:
    """End processes of one kind."""

    def say(started: Started, how: str) -> None:
        told.append({"name": started.name, "how": how})
        call.out.note(f"{started.name}: {how} (pid {started.pid})", "")

    return processes.end(group, store, call.args.timeout, say)


async def replicas(call: Call, agent: Started) -> None:
    """Stop the agent's replicas when asked to; else say that they go on: they are made to outlive it."""
    place = Place("the agent", (agent.url,), "--api-url", call.api.token)
    async with api.connect() as calls:
        if call.args.replicas:
            await stop_replicas(calls, call, place)
            return
        with suppress(Problem):  # only a note: an agent that does not answer is ended all the same
            if left := await alive(calls, place):
                call.out.note(f"{len(left)} replica(s) of the agent go on; 'svcctl up' finds them again")


async def stop_replicas(calls: Api, call: Call, agent: Place) -> None:
    """Stop them all, and wait.

    Raises:
        Problem: One did not stop in time; the agent is then left to it.
    """
    left = await alive(calls, agent)
    for name in left:
        await calls.call(agent, "POST", path_of(name, "/stop"), body={"force": False})
    deadline = time.monotonic() + call.args.timeout
    while left:
        still = await alive(calls, agent)
        for name in sorted(set(left) - set(still)):
            call.out.note(f"{name}: stopped", "")
        left = still
        if left and time.monotonic() >= deadline:
            raise Problem(
                f"{', '.join(left)} did not stop within {call.args.timeout:g} s",
                hint="give a longer --timeout, or 'svcctl replicas stop --force'",
                code=Code.TIME_IS_UP,
            )
        await asyncio.sleep(POLL_S if left else 0)


async def alive(calls: Api, agent: Place) -> list[str]:
    """Replicas that have not stopped; a failed one still has its babysitter."""
    listed = (await calls.get(agent, "/api/v1/replicas")).get("replicas", [])
    return [str(one["replica_id"]) for one in listed if one.get("status") != "stopped"]


COMMANDS = (
    Command(
        "down",
        "end what 'up' started here",
        down,
        add,
        details="Babysitters with their servers first, then agent, router and registry. A pid alone is not believed:\n"
        "a process that 'up' did not start is never touched. Replicas made by the agent go on unless --replicas.",
        examples=("svcctl down", "svcctl down babysitter-8100", "svcctl down --replicas"),
    ),
)
