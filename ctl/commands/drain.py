"""`svcctl drain|undrain NAME`: no new requests to a server, and requests to it again."""

import asyncio
import time
from argparse import ArgumentParser
from urllib.parse import quote

from common.wire.record import ServiceRecord
from common.wire.router import RoutedService
from common.wire.words import RecordKind
from ctl import answers, completers
from ctl.api import Api
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.problem import Problem

POLL_S = 0.25


def add_drain(parser: ArgumentParser) -> None:
    """Flags of `drain`."""
    add_name(parser)
    parser.add_argument(
        "--hand-over", action="store_true", help="move its streams to other replicas, for models with 'rescue'"
    )
    parser.add_argument("--wait", action="store_true", help="until the router has no request under way to it")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="of --wait (default: 300)")


def add_name(parser: ArgumentParser) -> None:
    """The service's name."""
    name = parser.add_argument("name", metavar="NAME", help="the server's record, its babysitter, or a replica id")
    completers.attach(name, completers.services)


async def drain(call: Call) -> int:
    """Let a server have no new requests."""
    async with call.connect() as calls:
        name = await routable_name(calls, call, call.args.name)
        path = f"/services/{quote(name, safe='')}/drain" + ("?hand_over=true" if call.args.hand_over else "")
        answer = await calls.call(call.registry, "POST", path)
        call.out.note(f"{name}: drains; no new requests go to it ('svcctl undrain {name}' takes it back)")
        in_flight = await until_idle(calls, call, name) if call.args.wait else None
    if call.out.as_json:
        call.out.document({**answer, "in_flight": in_flight})
    if in_flight:
        raise Problem(f"{name}: {in_flight} request(s) still under way", hint="wait longer", code=Code.TIME_IS_UP)
    if call.args.wait:
        call.out.note(f"{name}: no request is under way", "green")
    return Code.OK


async def undrain(call: Call) -> int:
    """Let a server have requests again."""
    async with call.connect() as calls:
        name = await routable_name(calls, call, call.args.name)
        answer = await calls.call(call.registry, "POST", f"/services/{quote(name, safe='')}/undrain")
    if call.out.as_json:
        call.out.document(answer)
    call.out.note(f"{name}: takes requests again")
    return Code.OK


async def routable_name(calls: Api, call: Call, name: str) -> str:
    """The routable record that `name` means: itself, or `NAME-server`.

    Raises:
        Problem: There is none.
    """
    answer = await calls.get(call.registry, "/services")
    types = {record.name: record.type for record in answers.items(ServiceRecord, answer, "services")}
    for server in (name, f"{name}-server"):
        if types.get(server) == RecordKind.SERVER:
            return server
    if name in types:
        raise Problem(f"{name} has no server that takes requests now", hint="see 'svcctl services'", code=Code.FAILED)
    raise Problem(f"no service {name!r}", hint="'svcctl services' lists them", code=Code.NOT_FOUND)


async def until_idle(calls: Api, call: Call, name: str) -> int:
    """Wait until the router has nothing under way to `name`; how much is left when the time is up."""
    deadline = time.monotonic() + call.args.timeout
    while True:
        routed = answers.items(RoutedService, await calls.get(call.router, "/services"), "services")
        servers = [service for service in routed if service.name == name]
        # A router that has not heard of the drain yet may still send.
        has_heard = all(service.standing == "draining" for service in servers)
        in_flight = sum(service.in_flight for service in servers)
        if has_heard and not in_flight:
            return 0
        if time.monotonic() >= deadline:
            return max(in_flight, 1)
        await asyncio.sleep(POLL_S)


COMMANDS = (
    Command(
        "drain",
        drain,
        add_drain,
        details="Requests under way go on; with --hand-over streams go on at other replicas, so that it is empty in seconds. "
        "The server keeps running; stop it when --wait has returned.",
        examples=("svcctl drain qwen-7b-server", "svcctl drain qwen-7b --hand-over --wait --timeout 600"),
    ),
    Command(
        "undrain",
        undrain,
        add_name,
        examples=("svcctl undrain qwen-7b-server",),
    ),
)
