"""How svcctl ends: one number for each kind of outcome, so that scripts need not read words."""

from enum import IntEnum


class Code(IntEnum):
    """Exit codes; 70 and 78 are the whole suite's (`common.exits`)."""

    OK = 0
    FAILED = 1
    """The command worked, and what it looked at is not well: a failed replica, a fault found, a broken stream."""
    USAGE = 2
    """The command line cannot be parsed."""
    UNREACHABLE = 3
    """Nobody answers at the address asked, or not in time."""
    NOT_FOUND = 4
    """What was named does not exist."""
    REFUSED = 5
    """The service said no: a token is missing, a field is wrong, somebody else owns it."""
    TIME_IS_UP = 6
    """The wait ended first; what was waited for goes on."""
    CONFIG = 78
    """A file or a setting on this machine is wrong."""
    INTERRUPTED = 130
    """Ctrl-C."""
    PIPE = 141
    """Whoever read the output went away."""


MEANINGS = {
    Code.OK: "done, and well",
    Code.FAILED: "what was looked at is not well (a failed replica, a fault found)",
    Code.USAGE: "the command line cannot be parsed",
    Code.UNREACHABLE: "nobody answers there",
    Code.NOT_FOUND: "no such replica, service or model",
    Code.REFUSED: "the service refused: a token, a field, an owner",
    Code.TIME_IS_UP: "the wait ended; what was waited for goes on",
    Code.CONFIG: "a file or a setting on this machine is wrong",
    Code.INTERRUPTED: "interrupted",
    Code.PIPE: "whoever read the output went away",
}
"""For `--help` and the reference page."""
