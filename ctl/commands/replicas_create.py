"""`svcctl replicas create` and `wait`: make a replica, and wait with a bar that names the stage."""

import asyncio
from argparse import ArgumentParser
from contextlib import aclosing
from typing import Any

from ctl import api, completers
from ctl.api import Api
from ctl.call import Call, Command
from ctl.codes import Code
from ctl.commands.request import add_choices, choices, read_table
from ctl.convert import Unusable, laid_over
from ctl.follow import follow, info_of
from ctl.live import Board, board
from ctl.problem import Problem
from ctl.views.progress import Progress

CREATE_TIMEOUT_S = 60.0


def add_create(parser: ArgumentParser) -> None:
    """Flags of `create`."""
    file = parser.add_argument("-f", "--file", metavar="FILE", help="the request, JSON or YAML; - is standard input")
    completers.attach(file, completers.files("json", "yaml", "yml"))
    add_choices(parser)
    add_wait_flags(parser)


def add_wait_flags(parser: ArgumentParser) -> None:
    """Flags of everything that may wait."""
    parser.add_argument("--wait", action="store_true", help="until it is ready, or has failed")
    add_timeout(parser)


def add_timeout(parser: ArgumentParser) -> None:
    """How long to wait."""
    parser.add_argument("--timeout", type=float, metavar="S", help="longest wait (default: none; compiling takes long)")


def add_wait(parser: ArgumentParser) -> None:
    """Flags of `wait`."""
    ids = parser.add_argument("ids", metavar="ID", nargs="+", help="replicas")
    completers.attach(ids, completers.replicas)
    parser.add_argument(
        "--for", dest="wanted", choices=("ready", "stopped"), default="ready", help="what to wait for (default: ready)"
    )
    add_timeout(parser)


async def create(call: Call) -> int:
    """Create a replica; its id is the result."""
    body = request(call)
    async with api.connect() as calls:
        made = await calls.call(call.api, "POST", "/api/v1/replicas", body=body, timeout_s=CREATE_TIMEOUT_S)
        replica_id = str(made["replica_id"])
        if not call.args.wait:
            if call.out.as_json:
                call.out.document(made)
            else:
                call.out.line(replica_id)
                call.out.note(f"{made.get('message', 'created')}; wait for it: svcctl replicas wait {replica_id}")
            return Code.OK
        if not call.out.as_json:
            call.out.line(replica_id)
        return await until(call, calls, [replica_id], "ready")


async def wait(call: Call) -> int:
    """Wait for replicas that exist."""
    async with api.connect() as calls:
        return await until(call, calls, call.args.ids, call.args.wanted)


def request(call: Call) -> dict[str, Any]:
    """The body of the create call.

    Raises:
        Problem: It is not said what to create.
    """
    args = call.args
    found = read_table(args.file) if args.file else {}
    try:
        body = laid_over(found, choices(args))
    except Unusable as error:
        raise Problem(str(error), code=Code.USAGE) from error
    missing = [flag for key, flag in (("server_mode", "--mode"), ("model_name", "--model")) if key not in body]
    if missing:
        raise Problem(
            f"the request has no {' and no '.join(missing)}",
            hint="give a request with -f FILE, or these flags ('svcctl request from-yaml' makes one)",
            code=Code.USAGE,
        )
    return body


async def until(call: Call, calls: Api, ids: list[str], wanted: str) -> int:
    """Wait for all of `ids`; the worst outcome is the command's.

    Raises:
        Problem: One has failed, or the time is up.
    """
    ways = [Progress(replica_id) for replica_id in ids]
    try:
        async with asyncio.timeout(call.args.timeout):
            with board(call.out) as shown:
                ended = await asyncio.gather(
                    *(accompany(call, calls, way, wanted, shown) for way in ways), return_exceptions=True
                )
    except asyncio.CancelledError:
        call.out.note(f"nothing is stopped; wait again with: svcctl replicas wait {' '.join(ids)}")
        raise
    except TimeoutError as error:
        left = ", ".join(f"{way.replica_id} ({way.stage})" for way in ways if not way.reached(wanted))
        said = f"not {wanted} after {call.args.timeout:g} s: {left}"
        raise Problem(said, hint="it goes on; wait again", code=Code.TIME_IS_UP) from error
    for fault in ended:
        if isinstance(fault, BaseException):
            raise fault
    await tell(call, calls, ways)
    for way in ways:
        if way.status != wanted:
            raise sorry(way)
    return Code.OK


async def accompany(call: Call, calls: Api, way: Progress, wanted: str, shown: Board) -> None:
    """Follow one replica until there is nothing to wait for."""
    known = False
    try:
        async with aclosing(follow(calls, call.api, way.replica_id, until_ready=wanted == "ready")) as events:
            async for name, data in events:
                known = True
                way.take(name, data)
                if way.reached(wanted):
                    break
                shown.show(way.replica_id, way.stage, share=way.share, detail=way.detail)
    except Problem as problem:
        # A deleted replica is forgotten after a while: it was there, so it is gone.
        if not (known and wanted == "stopped" and problem.code is Code.NOT_FOUND):
            raise
        way.take("end", {"status": "stopped"})
    shown.end(way.replica_id, way.outcome, well=way.status == wanted)


async def tell(call: Call, calls: Api, ways: list[Progress]) -> None:
    """The result for `--json`: the infos as they are now."""
    if call.out.as_json:
        infos = await asyncio.gather(*(info_of(calls, call.api, way.replica_id) for way in ways))
        call.out.document(infos[0] if len(infos) == 1 else infos)


def sorry(way: Progress) -> Problem:
    """What an operator needs of a replica that did not get there."""
    reason = way.error.strip().splitlines()
    said = f": {reason[0]}" if reason else ""
    return Problem(f"{way.replica_id} is {way.status}{said}", hint=f"see 'svcctl replicas logs {way.replica_id}'")


COMMANDS = (
    Command(
        "replicas create",
        "create a replica",
        create,
        add_create,
        details="Prints its id at once. With --wait a bar shows the stage it is in; the id is still all that goes to\n"
        "standard output. Exit code 1: it has failed; 6: the time is up, and it goes on.",
        examples=(
            "svcctl replicas create -f request.json --wait",
            "svcctl replicas create --mode replica_mock --model llama3.1-8b --multibox dh1 --app-tag build-1b9c30c813",
            "svcctl replicas create -f request.json --node node-2 --request-id nightly-17 --json",
        ),
    ),
    Command(
        "replicas wait",
        "wait until replicas are ready (or stopped)",
        wait,
        add_wait,
        examples=("svcctl replicas wait abc123def456", "svcctl replicas wait abc123def456 --for stopped --timeout 120"),
    ),
)
