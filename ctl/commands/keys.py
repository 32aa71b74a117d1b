"""`svcctl keys create|list|limits|rotate|revoke`: the API keys that the registry keeps (docs/keys.md)."""

import re
from argparse import ArgumentParser, ArgumentTypeError
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from common.wire.base import JsonObject
from common.wire.keys import LIMITS, KeyInfo, RotateCall
from ctl import answers, completers
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.views import keys as views

ROOT = "/api/v1/keys"
NONE = "none"
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_PERIOD = re.compile(r"([0-9]{1,6})([smhd])")


def add_name(parser: ArgumentParser) -> None:
    """The key meant."""
    name = parser.add_argument("name", metavar="NAME", help="the key")
    completers.attach(name, completers.keys)


def add_create(parser: ArgumentParser) -> None:
    """Flags of `create`."""
    parser.add_argument("name", metavar="NAME", help="whose it is, such as team-a")
    _add_settings(parser)


def add_limits(parser: ArgumentParser) -> None:
    """Flags of `limits`."""
    add_name(parser)
    _add_settings(parser)
    parser.add_argument("--disable", dest="enabled", action="store_false", default=None, help="let nobody in by it")
    parser.add_argument("--enable", dest="enabled", action="store_true", default=None, help="let it in again")


def add_rotate(parser: ArgumentParser) -> None:
    """Flags of `rotate`."""
    add_name(parser)
    parser.add_argument(
        "--grace",
        metavar="TIME",
        type=_period_s,
        default=86_400,
        help="how long the old secret is taken (default: 24h)",
    )


def _add_settings(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        dest="models",
        metavar="NAME|none",
        action="append",
        help="a model that it may use, or a pattern; several times for several; default: all",
    )
    for name in LIMITS:
        parser.add_argument(
            f"--{name.replace('_', '-')}", metavar="N|none", type=_count, help="of all routers together"
        )
    parser.add_argument("--priority", choices=("high", "normal", "low"), help="whose requests go first where they wait")
    parser.add_argument("--weight", metavar="X", type=float, help="its share beside others' (default: 1)")
    parser.add_argument("--admin", choices=("yes", "no"), help="may it use the router's /admin and /api/v1")
    parser.add_argument("--expires", metavar="TIME|none", type=_expiry, help="from now, as 90d, 12h or 30m")


def _count(text: str) -> int | str:
    if text != NONE and (not text.isascii() or not text.isdigit() or not 0 < int(text) <= 10**15):
        raise ArgumentTypeError(f"{text!r} is neither {NONE!r} nor a number above 0")
    return text if text == NONE else int(text)


def _period_s(text: str) -> int:
    found = _PERIOD.fullmatch(text)
    if found is None and text != "0":
        raise ArgumentTypeError(f"{text!r} is no time such as 24h, 30m or 90d")
    return int(found[1]) * _UNITS_S[found[2]] if found is not None else 0


def _expiry(text: str) -> str:
    return text if text == NONE else (datetime.now(UTC) + timedelta(seconds=_period_s(text))).isoformat("T", "seconds")


def _settings(call: Call) -> JsonObject:
    """What the flags say; `none` takes away what is there."""
    args = call.args
    said = {name: getattr(args, name) for name in (*LIMITS, "priority", "weight")}
    said |= {"models": args.models, "expires_at": args.expires, "enabled": getattr(args, "enabled", None)}
    said["admin"] = None if args.admin is None else args.admin == "yes"
    told = {name: value for name, value in said.items() if value is not None}
    return {name: None if value in (NONE, [NONE]) else value for name, value in told.items()}


def path_of(name: str, rest: str = "") -> str:
    """A key's path."""
    return f"{ROOT}/{quote(name, safe='')}{rest}"


async def create(call: Call) -> int:
    """Make one; its secret is printed, and never again."""
    async with call.connect() as calls:
        answer = await calls.call(call.registry, "POST", ROOT, body={"name": call.args.name, **_settings(call)})
    return _print_secret(call, answer, "made; this is its secret, shown once: keep it where only its user reads it")


async def rotate(call: Call) -> int:
    """Give it another secret, printed once."""
    async with call.connect() as calls:
        body = RotateCall(grace_s=call.args.grace)
        answer = await calls.call(call.registry, "POST", path_of(call.args.name, "/rotate"), body=body)
    until = answer.get("old_secret_until")
    return _print_secret(call, answer, f"new secret; the old one is taken {f'until {until}' if until else 'no more'}")


def _print_secret(call: Call, answer: JsonObject, note: str) -> int:
    if call.out.as_json:
        call.out.document(answer)
    else:
        call.out.write(f"{answer.get('secret', '')}\n")
    call.out.note(f"{call.args.name}: {note}")
    return Code.OK


async def show(call: Call) -> int:
    """All of them in a table."""
    async with call.connect() as calls:
        answer = await calls.get(call.registry, ROOT)
    if call.out.as_json:
        call.out.document(answer)
        return Code.OK
    found = answers.items(KeyInfo, answer, "keys")
    if found:
        call.out.table(views.table(found, datetime.now(UTC)))
    else:
        call.out.note("no keys: 'svcctl keys create NAME' makes one")
    return Code.OK


async def limits(call: Call) -> int:
    """Change what flags say, or show one."""
    change = _settings(call)
    async with call.connect() as calls:
        method = "PATCH" if change else "GET"
        answer = await calls.call(call.registry, method, path_of(call.args.name), body=change or None)
    if call.out.as_json:
        call.out.document(answer)
    else:
        call.out.table(views.table([answers.read(KeyInfo, answer)], datetime.now(UTC)))
    return Code.OK


async def revoke(call: Call) -> int:
    """Delete it."""
    async with call.connect() as calls:
        answer = await calls.call(call.registry, "DELETE", path_of(call.args.name))
    if call.out.as_json:
        call.out.document(answer)
    call.out.note(f"{call.args.name}: revoked; routers refuse it within a second", "")
    return Code.OK


COMMANDS = (
    Command(
        "keys create",
        create,
        add_create,
        details="The secret alone goes to standard output. Routers with registry_keys take it within a second.",
        examples=(
            "svcctl keys create team-a",
            "svcctl keys create team-a --model 'qwen-*' --tokens-per-minute 200000 --max-in-flight 8 --expires 90d",
        ),
    ),
    Command("keys list", show, examples=("svcctl keys list", "svcctl keys list --json")),
    Command(
        "keys limits",
        limits,
        add_limits,
        details="'none' takes a limit away. A disabled key stays, with what it used; a revoked one is gone.",
        examples=(
            "svcctl keys limits team-a",
            "svcctl keys limits team-a --requests-per-minute 600 --tokens-per-day none",
            "svcctl keys limits team-a --disable",
        ),
    ),
    Command(
        "keys rotate",
        rotate,
        add_rotate,
        details="Its name, limits and account stay.",
        examples=("svcctl keys rotate team-a", "svcctl keys rotate team-a --grace 0"),
    ),
    Command(
        "keys revoke",
        revoke,
        add_name,
        details="For good: the name is free again. 'svcctl keys limits NAME --disable' closes one for a while.",
        examples=("svcctl keys revoke team-a",),
    ),
)
