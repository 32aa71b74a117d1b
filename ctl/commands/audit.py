"""`svcctl audit`: who changed what, at the registry and on the nodes."""

import time
from argparse import ArgumentParser

from common.wire.audit import AuditLine, AuditList
from ctl import answers
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.commands.usage import moment
from ctl.table import TextTable

PATH = "/api/v1/audit"


def add(parser: ArgumentParser) -> None:
    """Flags of `audit`."""
    parser.add_argument("--since", default="24h", metavar="WHEN", help="1h, 7d, 4w, or a date (default: 24h)")
    parser.add_argument("--who", default="", metavar="TEXT", help="only callers that have this in their name")
    parser.add_argument("--limit", type=int, default=200, metavar="N", help="the latest so many (default: 200)")


async def audit(call: Call) -> int:
    """Print the lines, the latest last."""
    args = call.args
    asked = {"since": moment(args.since, time.time()), "limit": str(args.limit)}
    asked |= {"who": args.who} if args.who else {}
    async with call.connect() as calls:
        answer = await calls.get(call.registry, PATH, params=asked)
    told = answers.read(AuditList, answer)
    if call.out.as_json:
        call.out.document(answer)
    elif not told.lines:
        call.out.note("nothing was changed in that time")
    else:
        head = ("TIME", "SERVICE", "WHO", "FROM", "CALL", "STATUS", "REQUEST")
        call.out.table(TextTable(head, list(map(row, told.lines)), right=frozenset({"STATUS"})))
        if told.total >= args.limit:
            call.out.note(f"the latest {told.total}; --limit shows more")
    if told.missing:
        call.out.note(f"without {', '.join(told.missing)}: no answer from the node's agent")
    return Code.OK


def row(line: AuditLine) -> tuple[str, ...]:
    """A line as it is shown."""
    called = f"{line.method} {line.path}"
    return (line.time, line.service, line.who, line.remote, called, str(line.status), str(line.request_id or ""))


COMMANDS = (
    Command(
        "audit",
        audit,
        add,
        details="Every call that was to change something: who made it, from where, and what came of it. Needs an admin token.\n"
        "Heartbeats, registrations of babysitters and calls without a valid token are not in it.",
        examples=("svcctl audit", "svcctl audit --since 1h --who 'token admin'", "svcctl audit --since 7d --json"),
    ),
)
