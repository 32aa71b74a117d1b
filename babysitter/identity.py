"""A process is never a bare pid: boot id + pid + start time (B6, B7).

The mark in the environment is a hint only: a process may write over it (a title set by setproctitle does), or be
started without it (`env -i`). Where nothing else is known it finds processes; it never disowns one (W25).
"""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from common import pidfd

MARK = "SUITE_INCARNATION"
_PARENT, _SESSION, _TICKS = 1, 3, 19
"""Places in /proc/PID/stat, counted after the command's closing parenthesis (proc(5))."""


class Identity(msgspec.Struct, frozen=True):
    """One process of one boot; none, without a pid. `ticks` is its start time in clock ticks since boot."""

    boot_id: str = ""
    pid: int = 0
    ticks: int = 0


@dataclass(frozen=True, slots=True)
class Kinship:
    """What the kernel tells of a live process: its parent's pid, its session, its start time in ticks since boot."""

    parent: int
    session: int
    ticks: int


def boot_id() -> str:
    """This boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def kinship(pid: int) -> Kinship | None:
    """Of a live process; None when it is gone or a zombie, which counts as dead (A13)."""
    try:
        raw = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = raw.rpartition(b")")[2].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return Kinship(int(fields[_PARENT]), int(fields[_SESSION]), int(fields[_TICKS]))


def processes() -> dict[int, Kinship]:
    """Every live process, by pid."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    kin = {pid: kinship(pid) for pid in pids}
    return {pid: relation for pid, relation in kin.items() if relation is not None}


def command(pid: int) -> list[bytes]:
    """The words of its command line; none when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def start_ticks(pid: int) -> int | None:
    """Start time of a live process; None when it is gone."""
    kin = kinship(pid)
    return None if kin is None else kin.ticks


def identify(pid: int) -> Identity | None:
    """The identity of a live process."""
    ticks = start_ticks(pid)
    return None if ticks is None else Identity(boot_id(), pid, ticks)


def is_alive(process: Identity) -> bool:
    """True when this very process lives."""
    return process.boot_id == boot_id() and start_ticks(process.pid) == process.ticks


def leads_session(process: Identity) -> bool:
    """True when this very process lives and leads a session, as every server that a shim started does."""
    kin = kinship(process.pid)
    is_it = kin is not None and kin.ticks == process.ticks and process.boot_id == boot_id()
    return is_it and kin is not None and kin.session == process.pid


def carries(pid: int, uuid: str) -> bool:
    """True when the environment of `pid` has the attempt's mark; False as well when it cannot be read."""
    try:
        return f"{MARK}={uuid}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def bearers(uuid: str) -> list[Identity]:
    """Every live process that carries the attempt's mark, oldest first."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    carriers = [identify(pid) for pid in pids if carries(pid, uuid)]
    return sorted((process for process in carriers if process is not None), key=lambda process: process.ticks)


def end_bearers(uuid: str, *, rounds: int = 50) -> None:
    """Kill every process that carries the mark, and those they start meanwhile. Blocks, a second at most."""
    for _ in range(rounds):
        survivors = bearers(uuid)
        if not survivors:
            return
        for process in survivors:
            send(process, signal.SIGKILL)
        time.sleep(0.02)


def send(process: Identity, number: signal.Signals) -> bool:
    """Signal this very process and no successor of its pid; False when it is gone or another user's, as by sudo."""
    try:
        return pidfd.send(process.pid, number, lambda: is_alive(process))
    except PermissionError:
        return False


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
