"""`svcctl replicas wait`, and how other commands wait: a bar for each replica names the stage it is in."""

import asyncio
from argparse import ArgumentParser
from contextlib import aclosing

from ctl import completers
from ctl.api import Api
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.follow import follow, info_of
from ctl.live import board
from ctl.problem import Problem
from ctl.progress import ProgressBoard
from ctl.views.groups import STEPS
from ctl.views.progress import ReplicaProgress
from ctl.views.replicas import first_line


def add_wait_flags(parser: ArgumentParser, help_text: str) -> None:
    """Flags of everything that may wait."""
    parser.add_argument("--wait", action="store_true", help=help_text)
    add_timeout(parser)


def add_timeout(parser: ArgumentParser) -> None:
    """How long to wait."""
    parser.add_argument("--timeout", type=float, metavar="S", help="longest wait (default: none; compiling takes long)")


def add_wait(parser: ArgumentParser) -> None:
    """Flags of `wait`."""
    ids = parser.add_argument("ids", metavar="ID", nargs="+", help="replicas")
    completers.attach(ids, completers.replicas)
    parser.add_argument(
        "--for", dest="goal", choices=("ready", "stopped"), default="ready", help="what to wait for (default: ready)"
    )
    add_timeout(parser)


async def wait(call: Call) -> int:
    """Wait for replicas that exist."""
    async with call.connect() as calls:
        return await until(call, calls, call.args.ids, call.args.goal)


async def until(call: Call, calls: Api, ids: list[str], goal: str) -> int:
    """Wait for all of `ids`; the worst outcome is the command's.

    Raises:
        Problem: One has failed, or the time is up.
    """
    ways = [ReplicaProgress(replica_id) for replica_id in ids]
    try:
        async with asyncio.timeout(call.args.timeout):
            with board(call.out) as shown:
                ended = await asyncio.gather(
                    *(accompany(call, calls, way, goal, shown) for way in ways), return_exceptions=True
                )
    except asyncio.CancelledError:
        call.out.note(f"nothing is stopped; wait again with: svcctl replicas wait {' '.join(ids)}")
        raise
    except TimeoutError as error:
        waiting = ", ".join(f"{way.replica_id} ({way.stage})" for way in ways if not way.reached(goal))
        message = f"not {goal} after {call.args.timeout:g} s: {waiting}"
        raise Problem(message, hint="it goes on; wait again", code=Code.TIME_IS_UP) from error
    for fault in ended:
        if isinstance(fault, BaseException):
            raise fault
    await tell(call, calls, ways)
    for way in ways:
        if way.status != goal:
            raise sorry(way)
    return Code.OK


async def accompany(call: Call, calls: Api, way: ReplicaProgress, goal: str, shown: ProgressBoard) -> None:
    """Follow one replica until there is nothing to wait for."""
    was_there = False
    try:
        async with aclosing(follow(calls, call.api, way.replica_id, until_ready=goal == "ready")) as events:
            async for name, data in events:
                was_there = True
                way.take(name, data)
                if way.reached(goal):
                    break
                shown.show(way.replica_id, way.stage, share=way.share, detail=way.detail)
    except Problem as problem:
        # A deleted replica is forgotten after a while: it was there, so it is gone.
        if not (was_there and goal == "stopped" and problem.code is Code.NOT_FOUND):
            raise
        way.take("end", {"status": "stopped"})
    shown.end(way.replica_id, way.outcome, well=way.status == goal)


async def tell(call: Call, calls: Api, ways: list[ReplicaProgress]) -> None:
    """The result for `--json`: the infos as they are now."""
    if call.out.as_json:
        infos = await asyncio.gather(*(info_of(calls, call.api, way.replica_id) for way in ways))
        call.out.document(infos[0] if len(infos) == 1 else infos)


def sorry(way: ReplicaProgress) -> Problem:
    """What an operator needs of a replica that did not get there."""
    reason = first_line(way.error)
    why = f": {reason}" if reason else ""
    if way.overdue and way.status in STEPS:
        message = f"{way.replica_id} is late: not ready in the time that its request or the agent allows{why}"
        return Problem(
            message, hint=f"it goes on; wait again: svcctl replicas wait {way.replica_id}", code=Code.TIME_IS_UP
        )
    return Problem(f"{way.replica_id} is {way.status}{why}", hint=f"see 'svcctl replicas logs {way.replica_id}'")


COMMANDS = (
    Command(
        "replicas wait",
        wait,
        add_wait,
        examples=("svcctl replicas wait abc123def456", "svcctl replicas wait abc123def456 --for stopped --timeout 120"),
    ),
)
