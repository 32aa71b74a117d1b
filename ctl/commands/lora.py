"""`svcctl lora list|load|unload`: LoRA adapters of replicas, by the names that their babysitters' settings give them."""

from argparse import ArgumentParser
from pathlib import Path

from common.exits import ConfigurationError
from common.http.access import read_token
from common.wire.hints import hints_of
from common.wire.lora import LoraAdapter, LoraCall
from common.wire.record import ServiceRecord
from common.wire.words import RecordKind
from ctl import answers, completers
from ctl.api import Api, Place
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.commands.drain import routable_name
from ctl.problem import Problem
from ctl.views import fleet

STEP_TIMEOUT_S = 240.0
"""An adapter in use is waited for, and a large one takes time to load."""


def add_list(parser: ArgumentParser) -> None:
    """Flags of `list`."""
    name = parser.add_argument("name", metavar="REPLICA", nargs="?", help="only this one's")
    completers.attach(name, completers.services)


def add_step(parser: ArgumentParser) -> None:
    """Flags of `load` and `unload`."""
    name = parser.add_argument("name", metavar="REPLICA", help="the server's record, or its babysitter")
    completers.attach(name, completers.services)
    parser.add_argument("adapter", metavar="NAME", help="an adapter of the babysitter's settings")
    parser.add_argument(
        "--babysitter-token-file", metavar="FILE", help="the babysitter's token, where it listens beyond loopback"
    )


async def show(call: Call) -> int:
    """Print the adapters of all replicas, or of one, as their babysitters reported them."""
    async with call.connect() as calls:
        only = await routable_name(calls, call, call.args.name) if call.args.name else None
        servers = await _servers(calls, call)
    found = {
        server.name: answers.items(LoraAdapter, server.metadata.get("replica"), "adapters")
        for server in servers
        if only in (None, server.name)
    }
    if call.out.as_json:
        call.out.document({"adapters": {name: adapters for name, adapters in found.items() if adapters}})
    elif any(found.values()):
        call.out.table(fleet.adapters(found))
    else:
        call.out.note("no adapters: a babysitter's settings name them under [lora]")
    return Code.OK


async def load(call: Call) -> int:
    """Have a replica load an adapter."""
    return await _step(call, "load")


async def unload(call: Call) -> int:
    """Have a replica unload an adapter."""
    return await _step(call, "unload")


async def _step(call: Call, what: str) -> int:
    file, adapter = call.args.babysitter_token_file, call.args.adapter
    try:
        token = read_token(Path(file)) if file else None
    except ConfigurationError as error:
        raise Problem(str(error), code=Code.CONFIG) from error
    async with call.connect() as calls:
        name = await routable_name(calls, call, call.args.name)
        server = next((one for one in await _servers(calls, call) if one.name == name), None)
        url = hints_of(server.metadata).babysitter_url if server is not None else None
        if url is None:
            raise Problem(f"{name} has no babysitter of ours to load adapters", code=Code.FAILED)
        place = Place("the babysitter", (url,), "--registry-url", token, "--babysitter-token-file")
        body = LoraCall(name=adapter)
        answer = await calls.call(place, "POST", f"/lora/{what}", body=body, timeout_s=STEP_TIMEOUT_S)
    if call.out.as_json:
        call.out.document(answer)
    call.out.note(f"{name}: {adapter} is {answers.read(LoraAdapter, answer).state}", "green")
    return Code.OK


async def _servers(calls: Api, call: Call) -> list[ServiceRecord]:
    records = answers.items(ServiceRecord, await calls.get(call.registry, "/services"), "services")
    return [record for record in records if record.type == RecordKind.SERVER]


COMMANDS = (
    Command(
        "lora list",
        show,
        add_list,
        examples=("svcctl lora list", "svcctl lora list qwen-7b --json"),
    ),
    Command(
        "lora load",
        load,
        add_step,
        details="The babysitter's settings name the adapter and its path, under [lora]; its name is then a model.",
        examples=("svcctl lora load qwen-7b sql",),
    ),
    Command(
        "lora unload",
        unload,
        add_step,
        details="It gets no new requests, and goes when those under way are over, or the babysitter's drain time is.",
        examples=("svcctl lora unload qwen-7b sql --babysitter-token-file ~/.svc-babysitter",),
    ),
)
