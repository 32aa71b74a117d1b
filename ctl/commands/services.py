"""`svcctl services`, `svcctl models`: what is registered, and what can be asked."""

import time
from argparse import ArgumentParser

from common.wire.record import ServiceRecord
from common.wire.router import RoutedService
from ctl import answers
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.views import fleet


def add_services(parser: ArgumentParser) -> None:
    """Flags of `services`."""
    parser.add_argument("--type", metavar="TYPE", help="only records of this metadata.type (openai-api: the servers)")


async def services(call: Call) -> int:
    """Print the registry's records."""
    async with call.connect() as calls:
        answer = await calls.get(call.registry, "/services")
    records = [
        record for record in answers.items(ServiceRecord, answer, "services") if call.args.type in (None, record.type)
    ]
    if call.out.as_json:
        names = {record.name for record in records}
        shown = [record for record in answer.get("services", []) if record.get("name") in names]
        call.out.document({**answer, "services": shown, "total": len(shown)})
    elif records:
        call.out.table(fleet.services(records, time.time()))
    else:
        call.out.note("nothing is registered; start something with 'svcctl up --demo' or 'svcctl replicas create'")
    return Code.OK


async def models(call: Call) -> int:
    """Print the router's models."""
    router = call.router
    async with call.connect() as calls:
        listed = await calls.get(router, "/v1/models")
        routed = await calls.get(router, "/services")
    if call.out.as_json:
        call.out.document(listed)
    elif listed.get("data"):
        call.out.table(fleet.models(listed["data"], answers.items(RoutedService, routed, "services")))
    else:
        count = routed.get("total", 0)
        call.out.note(f"no model can be asked: the router knows {count} replica(s), none of them ready")
    return Code.OK


COMMANDS = (
    Command(
        "services",
        services,
        add_services,
        examples=("svcctl services", "svcctl services --type openai-api --json"),
    ),
    Command(
        "models",
        models,
        details="READY counts the replicas of a model that may get requests, of all that list it.",
        examples=("svcctl models", "svcctl models --router-url http://gateway:8000 --key-file ~/.svc-key"),
    ),
)
