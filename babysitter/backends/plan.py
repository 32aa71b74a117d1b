"""PURE: what every backend makes, and the words they share."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """Where the server is to listen, and the interpreter of the suite itself."""

    name: str
    host: str
    port: int
    python: str
    project: str


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """A server's command.

    `env` is added to the babysitter's own; `work_dir` is None for the babysitter's own; `expected_models` must all be
    served before the server counts as ready (empty: any).
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    work_dir: str | None = None
    expected_models: tuple[str, ...] = ()


def words(command: str) -> list[str]:
    """The words of a command as a shell would split them (`"python3 -m x"`).

    Raises:
        ValueError: A quote is not closed.
    """
    return shlex.split(command)


def option_value(args: Sequence[str], flag: str) -> str | None:
    """The value of `--flag value` or `--flag=value` among `args`; the last one counts."""
    value = None
    for number, word in enumerate(args):
        if word == flag and number + 1 < len(args):
            value = args[number + 1]
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value
