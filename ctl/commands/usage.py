"""`svcctl usage`: who used how many tokens."""

import re
import time
from argparse import ArgumentParser
from datetime import UTC, datetime

from common.wire.usage import UsageReport
from ctl import answers
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.problem import Problem
from ctl.views import usage as views

PATH = "/api/v1/usage"
UNITS_S = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
DIMENSIONS = ("key", "model", "replica")


def add(parser: ArgumentParser) -> None:
    """Flags of `usage`."""
    parser.add_argument(
        "--by", default="key,model", metavar="WHAT", help="some of key,model,replica (default: key,model)"
    )
    parser.add_argument("--since", default="7d", metavar="WHEN", help="24h, 7d, 4w, or a date (default: 7d)")
    parser.add_argument("--until", metavar="WHEN", help="likewise (default: now)")
    parser.add_argument("--step", choices=("hour", "day"), help="a row for each")
    parser.add_argument("--key", metavar="NAME", help="only this key's; an empty name: of who showed none")
    parser.add_argument("--csv", action="store_true", help="comma-separated values")


async def usage(call: Call) -> int:
    """Print it."""
    args, now = call.args, time.time()
    by = [name.strip() for name in args.by.split(",") if name.strip()]
    if not set(by) <= set(DIMENSIONS):
        raise Problem(f"--by {args.by}: must be some of {','.join(DIMENSIONS)}", code=Code.USAGE)
    asked = {"by": ",".join(by), "since": moment(args.since, now)}
    asked |= {"until": moment(args.until, now)} if args.until else {}
    asked |= {"step": args.step} if args.step else {}
    asked |= {"key": args.key} if args.key is not None else {}
    async with call.connect() as calls:
        answer = await calls.get(call.registry, PATH, params=asked)
    report = answers.read(UsageReport, answer)
    columns = ["at", *by] if args.step else by
    if args.csv:
        call.out.write(views.as_csv(report, columns))
    elif call.out.as_json:
        call.out.document(answer)
    elif not report.rows:
        call.out.note(f"nothing was used from {report.since} to {report.until}")
    else:
        call.out.table(views.table(report, columns))
        call.out.note(f"from {report.since} to {report.until}")
    return Code.OK


def moment(text: str, now: float) -> str:
    """Epoch seconds of `7d`, or of a date or time of ISO 8601, UTC where it does not say.

    Raises:
        Problem: It is neither.
    """
    ago = re.fullmatch(r"(\d{1,5})([hdw])", text)
    if ago is not None:
        return str(max(0, int(now) - int(ago[1]) * UNITS_S[ago[2]]))
    try:
        then = datetime.fromisoformat(text)
    except ValueError as error:
        raise Problem(f"{text!r} is no time: say 24h, 7d, 4w or 2026-01-31", code=Code.USAGE) from error
    return str(max(0, int((then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp())))


COMMANDS = (
    Command(
        "usage",
        usage,
        add,
        details="Requests and tokens as the routers told the registry, a few seconds ago at most: by the hour for five weeks, by\n"
        "the day for 400 days unless set otherwise. CACHED is a part of PROMPT; REASONING and ESTIMATED are parts of COMPLETION.\n"
        "ESTIMATED are pieces of streams whose engine told no usage.",
        examples=(
            "svcctl usage",
            "svcctl usage --by key --since 4w --step day --csv > usage.csv",
            "svcctl usage --by model,replica --since 24h --json",
        ),
    ),
)
