"""`svcctl explain MODEL`: where the router would send a request now, and why not elsewhere."""

import sys
from argparse import ArgumentParser
from pathlib import Path

import msgspec

from common.wire.base import JsonObject
from ctl import completers
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.problem import Problem
from ctl.views import fleet


def add(parser: ArgumentParser) -> None:
    """Flags of `explain`."""
    model = parser.add_argument("model", metavar="MODEL", nargs="?", help="the model asked for")
    completers.attach(model, completers.models)
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", default="", help="its text, which may matter")
    parser.add_argument("--cache-key", metavar="KEY", help="the request's prompt_cache_key")
    body = parser.add_argument("--body", metavar="FILE", help="the whole request instead; - is standard input")
    completers.attach(body, completers.files("json"))


async def explain(call: Call) -> int:
    """Ask the router for its decision."""
    async with call.connect() as calls:
        decision = await calls.call(call.router, "POST", "/admin/explain", body=request(call))
    if call.out.as_json:
        call.out.document(decision)
    else:
        call.out.line(fleet.decision_line(decision))
        if decision.get("candidates"):
            call.out.table(fleet.candidates(decision))
    return Code.OK if decision.get("picked") is not None else Code.FAILED


def request(call: Call) -> JsonObject:
    """The request to explain.

    Raises:
        Problem: There is none, or the file is no JSON object.
    """
    args = call.args
    if args.body is None:
        if args.model is None:
            raise Problem("which request?", hint="name a MODEL, or give the request with --body", code=Code.USAGE)
        key = {"prompt_cache_key": args.cache_key} if args.cache_key else {}
        return {"model": args.model, "messages": [{"role": "user", "content": args.prompt}], **key}
    try:
        raw = sys.stdin.buffer.read() if args.body == "-" else Path(args.body).read_bytes()
        body = msgspec.json.decode(raw)
    except (OSError, msgspec.DecodeError) as error:
        raise Problem(f"{args.body}: {error}", code=Code.CONFIG) from error
    if not isinstance(body, dict):
        raise Problem(f"{args.body}: must be a JSON object", code=Code.CONFIG)
    return body


COMMANDS = (
    Command(
        "explain",
        explain,
        add,
        details="Asks the router's POST /admin/explain; nothing is sent to a server. Exit code 1: nobody would get it.",
        examples=(
            "svcctl explain mock-small",
            'svcctl explain qwen-7b "long text" --cache-key team-a',
            "svcctl explain --body request.json --json",
        ),
    ),
)
