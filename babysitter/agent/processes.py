"""Babysitters as processes: started detached, found again by their command line, watched through a pidfd."""

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from babysitter import identity
from babysitter.attempt import ServerAttempt, readable
from babysitter.identity import Identity
from babysitter.settings import BabysitterSettings
from common.atomic_file import read_bounded
from common.log_tail import tail
from common.settings import options

log = structlog.get_logger(__name__)
LIMIT_BYTES = 1 << 20
COMPLAINT_LIMIT_BYTES = 2048
FLAG = next(setting.flags[0] for setting in options(BabysitterSettings, "") if setting.path == ("replica_dir",))
"""A babysitter is told its replica by this flag, and found again by it."""


@dataclass(frozen=True, slots=True)
class BabysitterProcess:
    """One babysitter's process; `code` of its end is only ours to know when it is our child."""

    process: Identity
    speaks = True
    number = 0
    ran_s = None
    verdict = None

    async def ended(self) -> int | None:
        """Wait for its end; its exit code (negative: a signal), or None when somebody else started it."""
        handle = identity.open_handle(self.process)
        if handle is not None:
            try:
                await readable(handle)
            finally:
                os.close(handle)
        try:
            pid, status = os.waitpid(self.process.pid, os.WNOHANG)  # noqa: ASYNC222 - does not wait
        except ChildProcessError:
            return None
        return os.waitstatus_to_exitcode(status) if pid else None

    @property
    def is_alive(self) -> bool:
        """True while this very process runs."""
        return identity.is_alive(self.process)

    @property
    def label(self) -> str:
        """Its pid."""
        return f"process {self.process.pid}"

    async def withdraw(self) -> None:
        """It runs from its start."""

    async def terminate(self) -> None:
        """It lets go of its server."""
        identity.send(self.process, signal.SIGTERM)

    async def kill(self) -> None:
        """At once."""
        identity.send(self.process, signal.SIGKILL)


def start(command: Sequence[str], directory: Path, port: int, env: Mapping[str, str]) -> BabysitterProcess:
    """Start a babysitter for `directory` in a session of its own, its output appended to worker_*.log there.

    It has our working directory and our paths, and so finds what we found.

    Raises:
        OSError: No process can be made, or the log cannot be written.
    """
    argv = [
        *command,
        FLAG,
        str(directory),
        "--port",
        str(port),
        "--config",
        str(directory / "babysitter.json"),
    ]
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(directory / "worker_stdout.log"), flags, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, str(directory / "worker_stderr.log"), flags, 0o600),
    ]
    pid = os.posix_spawnp(argv[0], argv, env, file_actions=actions, setsid=True, setsigmask=())
    process = identity.identify(pid)
    if process is None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        raise OSError(f"{argv[0]} ended at once")
    return BabysitterProcess(process)


def scan(root: Path) -> dict[str, list[BabysitterProcess]]:
    """Every babysitter of a replica under `root`, by replica id, oldest first: also one that has yet to take its lock."""
    babysitters_of: dict[str, list[BabysitterProcess]] = {}
    flag, prefix = os.fsencode(FLAG), os.fsencode(root) + b"/"
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        directory = words[words.index(flag) + 1] if flag in words[:-1] else b""
        if not directory.startswith(prefix):
            continue
        process = identity.identify(int(entry.name))
        if process is not None:
            babysitters_of.setdefault(os.fsdecode(directory.removeprefix(prefix)), []).append(
                BabysitterProcess(process)
            )
    for babysitters in babysitters_of.values():
        babysitters.sort(key=lambda babysitter: babysitter.process.ticks)
    return babysitters_of


def server_lives(attempts: Path, attempt: str) -> bool:
    """False when the server of that attempt is known to be gone; true also when nothing is known of it."""
    try:
        raw = read_bounded(attempts / attempt / "server.json", limit_bytes=LIMIT_BYTES)
        server = msgspec.json.decode(raw, type=identity.Identity)
    except (OSError, ValueError):
        return True
    return server.pid <= 1 or identity.is_alive(server)


def last_complaint(directory: Path) -> str:
    """Why the babysitter of that directory refused to start, from the end of what it said."""
    lines = tail(directory / "worker_stderr.log", COMPLAINT_LIMIT_BYTES).splitlines()
    errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
    return (errors or lines or ["it does not say why"])[-1]


def end_servers(attempts: Path) -> None:
    """Kill whatever is left of a replica's attempts. Blocks, two seconds per attempt at most."""
    with contextlib.suppress(OSError):
        for entry in attempts.iterdir():
            ServerAttempt(entry, grace_s=0.0).kill()
