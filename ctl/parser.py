"""The command line: every command with its words, flags, examples and help; one parser, also for completion."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from common import __version__
from ctl import completers
from ctl.call import Command
from ctl.codes import MEANINGS
from ctl.places import DEFAULT_REGISTRY, DEFAULT_ROUTER

GROUPS: Mapping[str, str] = {
    "replicas": "create, list, look at and stop replicas, on any node",
    "request": "make create requests",
}
"""First words that several commands share."""
DESCRIPTION = """Start, watch and steer inference servers, their registry and their router.

Results go to standard output, everything else to standard error. On a terminal there are colours and progress bars;
in a pipe there is plain text; --json gives JSON everywhere. Addresses and files can also stand in the environment:
SVC_REGISTRY_URL, SVC_ROUTER_URL, SVC_API_URL, SVC_TOKEN_FILE, SVC_KEY_FILE, SVC_STATE_DIR."""


def build(commands: Sequence[Command], env: Mapping[str, str]) -> argparse.ArgumentParser:
    """The parser of `commands`; defaults come from `env`."""
    top = argparse.ArgumentParser(
        prog="svcctl",
        description=DESCRIPTION,
        epilog=_exit_codes() + _examples(_FIRST_STEPS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_shared()],
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"svcctl {__version__}")
    top.set_defaults(**_defaults(env))
    # Another object: set_defaults writes into the flags that it finds, and a default below would hide a flag above.
    shared = _shared()
    subs = top.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    groups: dict[str, Any] = {}
    for command in commands:
        first, _, second = command.name.partition(" ")
        place, word = subs, first
        if second:
            if first not in groups:
                group = subs.add_parser(first, help=GROUPS[first], description=GROUPS[first].capitalize() + ".")
                groups[first] = group.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
            place, word = groups[first], second
        made = place.add_parser(
            word,
            help=command.help,
            description=command.help[:1].upper()
            + command.help[1:]
            + ("." if not command.details else ".\n\n")
            + command.details,
            epilog=_examples(command.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[shared],
            allow_abbrev=False,
        )
        command.add(made)
        made.set_defaults(run=command.run)
    return top


_FIRST_STEPS = (
    "svcctl up --demo",
    'svcctl chat mock-small "Hello"',
    "svcctl replicas create -f request.json --wait",
    "svcctl top",
    "svcctl doctor",
)


def _defaults(env: Mapping[str, str]) -> dict[str, str | bool | None]:
    home = env.get("XDG_STATE_HOME") or f"{env.get('HOME', '/tmp')}/.local/state"  # noqa: S108 - an account without a home
    return {
        "json": False,
        "registry_url": env.get("SVC_REGISTRY_URL") or None,
        "router_url": env.get("SVC_ROUTER_URL") or None,
        "api_url": env.get("SVC_API_URL") or None,
        "token_file": env.get("SVC_TOKEN_FILE") or None,
        "key_file": env.get("SVC_KEY_FILE") or None,
        "state_dir": env.get("SVC_STATE_DIR") or f"{home}/inference-svc",
    }


def _shared() -> argparse.ArgumentParser:
    """The flags of every command; their defaults stand on the top parser."""
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = shared.add_argument_group("where, and how it is shown")
    group.add_argument("--json", action="store_true", help="print JSON")
    group.add_argument(
        "--registry-url",
        metavar="URL",
        help=f"registries, by commas (default: the one that 'up' started, else {DEFAULT_REGISTRY})",
    )
    group.add_argument("--router-url", metavar="URL", help=f"the router (default: likewise, else {DEFAULT_ROUTER})")
    group.add_argument("--api-url", metavar="URL", help="who serves /api/v1 (default: the registry)")
    files = completers.files()
    token = group.add_argument("--token-file", metavar="FILE", help="0600 file with the token of registry and agents")
    key = group.add_argument("--key-file", metavar="FILE", help="0600 file with the router's API key")
    state = group.add_argument("--state-dir", metavar="DIR", help="what 'up' started (default: ~/.local/state/…)")
    for action in (token, key, state):
        completers.attach(action, files)
    return shared


def _examples(lines: Sequence[str]) -> str:
    return "examples:\n" + "".join(f"  {line}\n" for line in lines) if lines else ""


def _exit_codes() -> str:
    return "exit codes:\n" + "".join(f"  {code.value:<4} {text}\n" for code, text in MEANINGS.items()) + "\n"
