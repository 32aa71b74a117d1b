"""`svcctl replicas create`: make a replica from a request, from flags, or from both."""

from argparse import ArgumentParser

from common.wire.base import JsonObject
from common.wire.replica import Warned
from ctl import answers, completers
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.commands.replicas_wait import add_wait_flags, until
from ctl.commands.request import add_choices, choices, read_table
from ctl.convert import UnusableConfig, laid_over
from ctl.problem import Problem

CREATE_TIMEOUT_S = 60.0


def add_create(parser: ArgumentParser) -> None:
    """Flags of `create`."""
    file = parser.add_argument("-f", "--file", metavar="FILE", help="the request, JSON or YAML; - is standard input")
    completers.attach(file, completers.files("json", "yaml", "yml"))
    add_choices(parser)
    add_wait_flags(parser, "until it is ready, or has failed")


async def create(call: Call) -> int:
    """Create a replica; its id is the result."""
    body = request(call)
    async with call.connect() as calls:
        made = await calls.call(call.api, "POST", "/api/v1/replicas", body=body, timeout_s=CREATE_TIMEOUT_S)
        replica_id = str(made.get("replica_id") or "")
        if not replica_id:
            raise Problem(f"{call.api.name} answers without a replica_id; is it at {call.api.url}?")
        for member in answers.items(Warned, made, "warnings"):
            call.out.note(f"{member.field}: {member.note}", "yellow")
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


def request(call: Call) -> JsonObject:
    """The body of the create call.

    Raises:
        Problem: It is not said what to create.
    """
    args = call.args
    in_file = read_table(args.file) if args.file else {}
    try:
        body = laid_over(in_file, choices(args))
    except UnusableConfig as error:
        raise Problem(str(error), code=Code.USAGE) from error
    missing = [flag for key, flag in (("server_mode", "--mode"), ("model_name", "--model")) if key not in body]
    if missing and "backend" not in body:  # a template says the rest
        raise Problem(
            f"the request has no {' and no '.join(missing)}",
            hint="give a request with -f FILE, or these flags ('svcctl request from-yaml' makes one)",
            code=Code.USAGE,
        )
    return body


COMMANDS = (
    Command(
        "replicas create",
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
)
