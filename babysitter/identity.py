"""A process is never a bare pid: boot id + pid + start time, and the attempt's uuid in its environment (B6, B7)."""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from common import pidfd

MARK = "SUITE_INCARNATION"
_TICKS_FIELD = 19
"""Start time's place in /proc/PID/stat, counted after the command's closing parenthesis."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One process of one boot. `ticks` is its start time in clock ticks since boot."""

    boot_id: str
    pid: int
    ticks: int

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return {"boot_id": self.boot_id, "pid": self.pid, "ticks": self.ticks}


def from_json(value: Any) -> Identity | None:
    """Read what `to_json` (or the shim) wrote; None for anything else."""
    if not isinstance(value, dict):
        return None
    boot, pid, ticks = value.get("boot_id"), value.get("pid"), value.get("ticks")
    if isinstance(boot, str) and isinstance(pid, int) and isinstance(ticks, int) and pid > 1:
        return Identity(boot, pid, ticks)
    return None


def boot_id() -> str:
    """This boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_ticks(pid: int) -> int | None:
    """Start time of a live process; None when it is gone or a zombie, which counts as dead (A13)."""
    try:
        raw = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = raw.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[_TICKS_FIELD])


def identify(pid: int) -> Identity | None:
    """The identity of a live process."""
    ticks = start_ticks(pid)
    return None if ticks is None else Identity(boot_id(), pid, ticks)


def is_alive(process: Identity, *, uuid: str | None = None) -> bool:
    """True when this very process lives, and (when `uuid` is given) carries it in its environment."""
    if process.boot_id != boot_id() or start_ticks(process.pid) != process.ticks:
        return False
    return uuid is None or carries(process.pid, uuid)


def carries(pid: int, uuid: str) -> bool:
    """True when the environment of `pid` has the attempt's mark; False as well when it cannot be read."""
    try:
        return f"{MARK}={uuid}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def bearers(uuid: str) -> list[Identity]:
    """Every live process that carries the attempt's mark, oldest first."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    found = [identify(pid) for pid in pids if carries(pid, uuid)]
    return sorted((process for process in found if process is not None), key=lambda process: process.ticks)


def end_bearers(uuid: str, *, rounds: int = 50) -> None:
    """Kill every process that carries the mark, and those they start meanwhile. Blocks, a second at most."""
    for _ in range(rounds):
        left = bearers(uuid)
        if not left:
            return
        for process in left:
            send(process, signal.SIGKILL, uuid=uuid)
        time.sleep(0.02)


def send(process: Identity, number: signal.Signals, *, uuid: str | None = None) -> bool:
    """Signal this very process and no successor of its pid; False when it is gone."""
    return pidfd.send(process.pid, number, lambda: is_alive(process, uuid=uuid))


def rss_bytes(process: Identity) -> int:
    """Resident memory of the process and its descendants; 0 when it is gone."""
    total = 0
    try:
        root = psutil.Process(process.pid)
        for member in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
    except psutil.Error:
        return 0
    return total


def open_handle(process: Identity) -> int | None:
    """A pidfd of this very process, readable when it ends; None when it is gone. The caller closes it."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return None
    if is_alive(process):
        return handle
    with contextlib.suppress(OSError):
        os.close(handle)
    return None
