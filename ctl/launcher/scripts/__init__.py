"""What the launch scripts do: their variables in, their words and exit codes out."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.http.tls import TlsFiles
from ctl.api import tls_files
from ctl.launcher.plan import BabysitterFile
from ctl.launcher.state_dir import Launched, StateDir
from ctl.launcher.variables import Variables

STOP_TIMEOUT_S = 90
"""A babysitter lets its server drain (30 s) and end (30 s) before it ends itself."""


class Stop(Exception):
    """The script ends: with this code, after saying these lines on standard error."""

    def __init__(self, code: int, *lines: str) -> None:
        super().__init__(code, *lines)
        self.code = code
        self.lines = lines


@dataclass(frozen=True, slots=True)
class Script:
    """One run of a script.

    Args:
        root: The project's folder, which is the state directory.
        environ: The environment.
        variables: It, and what the script says beside it.
        read: Reads a babysitter's file whole; raises `Stop` when it is of no use.
    """

    root: Path
    environ: Mapping[str, str]
    variables: Variables
    read: Callable[[str], BabysitterFile]

    @property
    def state(self) -> StateDir:
        """What was launched from the project's folder."""
        return StateDir(self.root)

    @property
    def tls(self) -> TlsFiles:
        """Whom the launcher believes on https, and what it shows."""
        text = self.variables.text
        return tls_files(text("SVC_TLS_CA_FILE"), text("SVC_TLS_CERT_FILE"), text("SVC_TLS_KEY_FILE"))

    @property
    def stop_timeout_s(self) -> int:
        """STOP_TIMEOUT."""
        return self.variables.whole_number("STOP_TIMEOUT", STOP_TIMEOUT_S)


def say(text: str) -> None:
    """A line of the script's own."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """A line on standard error."""
    sys.stderr.write(f"{text}\n")


def tell_ended(launched: Launched, how: str) -> None:
    """How a process ended: on standard error when it had to be killed."""
    pid = f" (pid {launched.pid})" if how != "was not running" else ""
    (warn if how.startswith("killed") else say)(f"{launched.name}: {how.removeprefix('was ')}{pid}")
