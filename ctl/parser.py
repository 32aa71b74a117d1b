"""The command line: every command with its words, flags, examples and help; one parser, also for completion."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

from common import __version__
from ctl import completers
from ctl.codes import MEANINGS, Code
from ctl.command import Listed
from ctl.places import DEFAULT_REGISTRY, DEFAULT_ROUTER, default_state_dir

GROUPS: Mapping[str, str] = {
    "fleet": "make fleet files",
    "keys": "API keys that the registry keeps: make, limit, rotate and revoke them",
    "lora": "LoRA adapters of running servers: list, load and unload them",
    "replicas": "create, list, look at and stop replicas, on any node",
    "request": "make create requests",
    "tls": "make and show certificates for TLS between nodes",
    "rollout": "see, pause and undo what a change of a deployment does",
}
"""First words that several commands share."""
DESCRIPTION = """Start, watch and steer inference servers, their registry and their router.

Results go to standard output, everything else to standard error. On a terminal there are colours and progress bars;
in a pipe there is plain text; --json gives JSON everywhere. Addresses and files can also stand in the environment:
SVC_REGISTRY_URL, SVC_ROUTER_URL, SVC_API_URL, SVC_TOKEN_FILE, SVC_KEY_FILE, SVC_STATE_DIR."""


class Help(argparse.RawDescriptionHelpFormatter):
    """Our own line breaks, and room for long flags."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


class Parser(argparse.ArgumentParser):
    """One line for what cannot be parsed, like every other error."""

    def error(self, message: str) -> NoReturn:
        """argparse: end with exit code 2."""
        self.exit(Code.USAGE, f"svcctl: error: {message}; see '{self.prog} --help'\n")


def build(commands: Sequence[Listed], env: Mapping[str, str], words: Collection[str]) -> argparse.ArgumentParser:
    """The parser of `commands`; defaults come from `env`.

    Only the commands that may be meant by `words`, the command line, get their flags and are imported for them.
    """
    top = Parser(
        prog="svcctl",
        usage="svcctl COMMAND [flags]     svcctl COMMAND --help",
        description=DESCRIPTION,
        epilog=_examples(_FIRST_STEPS) + "\n" + _exit_codes(),
        formatter_class=Help,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"svcctl {__version__}")
    subs = top.add_subparsers(
        prog="svcctl",
        dest="command",
        metavar="COMMAND",
        title="commands",
        required=True,
    )
    groups: dict[str, Any] = {}
    for command in commands:
        first, _, second = command.name.partition(" ")
        place, word = subs, first
        if second:
            if first not in groups:
                purpose = GROUPS[first]
                group = subs.add_parser(first, help=purpose, description=_sentence(purpose), formatter_class=Help)
                groups[first] = group.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
            place, word = groups[first], second
        made = place.add_parser(word, help=command.help, formatter_class=Help, allow_abbrev=False)
        if all(part in words for part in command.name.split()):
            _fill(made, command)
    _add_places(top)
    top.set_defaults(**_defaults(env))
    return top


def _fill(parser: argparse.ArgumentParser, listed: Listed) -> None:
    command = listed.load()
    parser.description = "\n\n".join(part for part in (_sentence(listed.help), command.details) if part)
    parser.epilog = _examples(command.examples)
    command.add(parser)
    parser.set_defaults(run=command.run)
    _add_places(parser)


_FIRST_STEPS = (
    "svcctl up --demo",
    'svcctl chat mock-small "Hello"',
    "svcctl replicas create -f request.json --wait",
    "svcctl top",
    "svcctl doctor",
)


def _defaults(env: Mapping[str, str]) -> dict[str, str | bool | None]:
    return {
        "json": False,
        "registry_url": env.get("SVC_REGISTRY_URL") or None,
        "router_url": env.get("SVC_ROUTER_URL") or None,
        "api_url": env.get("SVC_API_URL") or None,
        "token_file": env.get("SVC_TOKEN_FILE") or None,
        "key_file": env.get("SVC_KEY_FILE") or None,
        **{f"tls_{name}_file": env.get(f"SVC_TLS_{name.upper()}_FILE") or None for name in ("ca", "cert", "key")},
        "state_dir": env.get("SVC_STATE_DIR") or default_state_dir(env),
    }


def _add_places(parser: argparse.ArgumentParser) -> None:
    """The flags of every command; their defaults stand on the top parser, so that a flag counts before and after it."""
    group = parser.add_argument_group("where, and how it is shown")

    def add(flag: str, help_text: str, metavar: str, *, is_file: bool = False) -> None:
        action = group.add_argument(flag, metavar=metavar, default=argparse.SUPPRESS, help=help_text)
        if is_file:
            completers.attach(action, completers.files())

    group.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    add("--registry-url", f"registries, by commas (default: the one launched here, else {DEFAULT_REGISTRY})", "URL")
    add("--router-url", f"the router (default: likewise, else {DEFAULT_ROUTER})", "URL")
    add("--api-url", "who serves /api/v1 (default: the registry)", "URL")
    add("--token-file", "0600 file with the token of registry and agents", "FILE", is_file=True)
    add("--key-file", "0600 file with the router's API key", "FILE", is_file=True)
    add("--tls-ca-file", "CAs that services on https are checked against (default: the system's)", "FILE", is_file=True)
    add("--tls-cert-file", "our certificate, for services that want to see one", "FILE", is_file=True)
    add("--tls-key-file", "0600 file with its key", "FILE", is_file=True)
    add(
        "--state-dir",
        "what was launched (default: the project's folder, else ~/.local/state/inference-svc)",
        "DIR",
        is_file=True,
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _examples(lines: Sequence[str]) -> str:
    return "examples:\n" + "".join(f"  {line}\n" for line in lines) if lines else ""


def _exit_codes() -> str:
    return "exit codes:\n" + "".join(f"  {code.value:<4} {text}\n" for code, text in MEANINGS.items())
