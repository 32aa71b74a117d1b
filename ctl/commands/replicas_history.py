"""`svcctl replicas timeline|logs`: what a replica went through, and what it said."""

from argparse import ArgumentParser
from collections.abc import Mapping
from urllib.parse import quote

from common.wire.record import ServiceRecord
from common.wire.replica import Stage, Transition
from common.wire.words import RecordKind
from ctl import answers
from ctl.api import Api, Place
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.commands.replicas_show import add_id
from ctl.follow import path_of
from ctl.problem import Problem
from ctl.views import replicas as views

STREAMS = ("stdout", "stderr", "worker", "deploy")
QUIET_S = 3600.0
"""A server may be silent for so long before its followed log is given up."""


def add_logs(parser: ArgumentParser) -> None:
    """Flags of `logs`."""
    add_id(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is written from now on")
    parser.add_argument("-n", "--tail", type=int, default=100, metavar="N", help="how many last lines (default: 100)")
    parser.add_argument(
        "--stream", choices=STREAMS, default="stdout", help="the server's (stdout, stderr), the babysitter's (worker) …"
    )


async def timeline(call: Call) -> int:
    """Print what it went through."""
    async with call.connect() as calls:
        try:
            timeline_ = await calls.get(call.api, path_of(call.args.id, "/timeline"))
        except Problem as problem:
            timeline_ = await calls.get(await babysitter_of(calls, call, problem), "/timeline")
    if call.out.as_json:
        call.out.document(timeline_)
        return Code.OK
    call.out.table(views.transitions(answers.items(Transition, timeline_, "transitions")))
    if stages := answers.items(Stage, timeline_, "stages"):
        call.out.line("")
        call.out.table(views.stages(stages))
    return Code.OK


async def logs(call: Call) -> int:
    """Print its log, and go on with it when asked to."""
    args = call.args
    params = {"stream": args.stream, "tail": str(args.tail), "follow": "1" if args.follow else "0"}
    async with call.connect() as calls:
        try:
            await copy(calls, call, call.api, path_of(args.id, "/logs"), params)
        except Problem as problem:
            await copy(calls, call, await babysitter_of(calls, call, problem), "/logs", params)
    return Code.OK


async def copy(calls: Api, call: Call, place: Place, path: str, params: Mapping[str, str]) -> None:
    """A text as it comes; under --json one document per line."""
    rest = b""
    async with calls.open(place, "GET", path, params=params, silence_s=QUIET_S) as answer:
        async for chunk in answer.content.iter_any():
            *lines, rest = (rest + chunk).split(b"\n")
            show(call, lines)
    show(call, [rest] if rest else [])


def show(call: Call, lines: list[bytes]) -> None:
    """Lines of a log."""
    for raw in lines:
        line = raw.decode("utf-8", "replace")
        if call.out.as_json:
            call.out.entry({"replica_id": call.args.id, "stream": call.args.stream, "line": line})
        else:
            call.out.write(line + "\n")


async def babysitter_of(calls: Api, call: Call, problem: Problem) -> Place:
    """The babysitter of a replica that no agent keeps (one started by hand), or the problem there was."""
    if problem.code is Code.UNREACHABLE:
        raise problem
    try:
        record = answers.read(
            ServiceRecord, await calls.get(call.registry, f"/services/{quote(call.args.id, safe='')}")
        )
    except Problem:
        raise problem from None
    if not record.url.startswith("http") or record.type == RecordKind.SERVER:
        raise problem
    return Place(f"the babysitter of {call.args.id}", (record.url,), "--registry-url", call.registry.token)


COMMANDS = (
    Command(
        "replicas timeline",
        timeline,
        add_id,
        examples=("svcctl replicas timeline abc123def456",),
    ),
    Command(
        "replicas logs",
        logs,
        add_logs,
        examples=(
            "svcctl replicas logs abc123def456 -f",
            "svcctl replicas logs abc123def456 --stream stderr --tail 1000",
        ),
    ),
)
