"""Exit codes that scripts, systemd and babysitters act on (numbers from sysexits.h), and the fault that has one."""

from enum import IntEnum


class Exit(IntEnum):
    """How a process of the suite ends."""

    OK = 0
    """It was told to stop, or has done what it was asked."""
    FAILED = 1
    """Something broke while running; a supervisor may restart it."""
    USAGE = 2
    """The command line cannot be parsed (argparse's own code)."""
    PARTLY = 3
    """A launch: a server does not run, everything else goes on."""
    UNAVAILABLE = 69
    """What was asked for cannot be had here: a compiler, a service that does not answer."""
    SOFTWARE = 70
    """A defect of ours: a task ended that must not end."""
    CONFIG = 78
    """Settings, a file or an address are wrong; restarting cannot help (docs/faults.md A7)."""


class ConfigurationError(RuntimeError):
    """The world does not allow these settings (a port is taken, a file is missing): exit 78, restarting cannot help."""
