"""One attempt to run the server: its directory, its shim, how it is found again, awaited and ended.

The directory holds `claim` (locked by the shim while it lives), `spec.json` (what to run; removed once read, for it
holds the environment), `server.json` (who runs), `members.json` (who else was seen to belong to it) and `exit.json`
(how it ended). The babysitter talks to the shim through these files and signals only, so that either may die alone.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from babysitter import family, identity
from babysitter.attempt_files import (
    AttemptEnd,
    AttemptLabels,
    AttemptMembers,
    AttemptServer,
    AttemptSpec,
    read_attempt_file,
)
from babysitter.events import Exited
from babysitter.identity import Identity
from common import lock_file
from common.atomic_file import write_atomic
from common.wire.read import read_lenient

log = structlog.get_logger(__name__)
M = TypeVar("M", bound=msgspec.Struct)
SHIM = Path(__file__).with_name("shim.py")
START_TIMEOUT_S = 30.0
FIND_TIMEOUT_S = 2.0
POLL_S = 0.02
LATE_POLL_S = 0.5
CLAIM_TO_LOCK_S = 0.2
"""A shim makes its claim and then locks it; an unlocked claim is looked at twice."""
SHIM_MARGIN_S = 10.0
"""How much longer than the grace a shim may take before we end the server without it."""
MEMBERS_LIMIT = 4096
"""Members that are remembered; a server with more of them is followed by parentage alone."""


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """What the shim runs.

    Args:
        argv: The command, `argv[0]` looked for on the PATH of `env`.
        env: The whole environment.
        cwd: Working directory.
        stdout: File that standard output is appended to.
        stderr: File that standard error is appended to.
        grace_s: Seconds between TERM and KILL.
        detaches: A command that ends with 0 leaves a server behind, which is not ours to end.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    stdout: Path
    stderr: Path
    grace_s: float
    detaches: bool = False


class ServerAttempt:
    """One server process with its shim.

    Args:
        directory: The attempt's own directory; its name is the uuid.
        grace_s: Seconds between TERM and KILL, in case the shim cannot do it.
    """

    def __init__(self, directory: Path, *, grace_s: float) -> None:
        self.directory = directory
        self.uuid = directory.name
        self.server: Identity | None = None
        self._shim: Identity | None = None
        self._grace_s = grace_s
        self._ender: asyncio.Task[None] | None = None
        self._child: int | None = None
        self._remembered: tuple[Identity, ...] = ()

    def begin(self, command: ServerCommand, labels: AttemptLabels) -> int:
        """Start the shim; returns a descriptor that reads end-of-file once the server runs or has failed to.

        Raises:
            OSError: The directory cannot be written, or no process can be made.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        spec = AttemptSpec(
            uuid=self.uuid,
            argv=command.argv,
            env=dict(command.env),
            cwd=str(command.cwd),
            stdout=str(command.stdout),
            stderr=str(command.stderr),
            grace_s=command.grace_s,
            detaches=command.detaches,
            labels=labels,
        )
        content = json.dumps(msgspec.to_builtins(spec))  # msgspec's JSON has no place for bytes that are no UTF-8
        write_atomic(self.directory / "spec.json", content.encode())
        ready, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_inheritable(write_end, True)  # noqa: FBT003 - the only argument there is
            actions = [
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, str(self.directory / "shim.log"), os.O_WRONLY | os.O_CREAT, 0o600),
            ]
            argv = [sys.executable, "-I", "-S", str(SHIM), str(self.directory), str(write_end)]
            self._child = os.posix_spawn(argv[0], argv, {}, file_actions=actions, setsid=True, setsigmask=())
        except OSError:
            os.close(ready)
            raise
        finally:
            os.close(write_end)
        return ready

    async def started(self, ready: int) -> Identity | None:
        """Wait until the server runs (its identity), or has failed to start (None). Closes `ready`."""
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(readable(ready), START_TIMEOUT_S)
        finally:
            os.close(ready)
        self._look()
        return self.server

    async def started_late(self) -> Identity | None:
        """Like `started`, of a shim that took longer: waits while it lives and has told of neither a start nor a failure."""
        while self.server is None and lock_file.is_held(self.directory / "claim"):
            await asyncio.sleep(LATE_POLL_S)
            self._look()
        return self.server

    async def find(self) -> Identity | None:
        """Look for a server that an earlier babysitter started; None when it is gone or never was.

        An attempt whose shim has not begun is claimed here, so that it can never begin.
        """
        claim = self.directory / "claim"
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            return None
        if not lock_file.is_held(claim):
            await asyncio.sleep(CLAIM_TO_LOCK_S)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + FIND_TIMEOUT_S
        while lock_file.is_held(claim) and not (self.directory / "server.json").exists() and loop.time() < deadline:  # noqa: ASYNC110 - another process writes the file
            await asyncio.sleep(POLL_S)
        self.recall()
        if self.server is None:
            await asyncio.to_thread(self._scan)
        elif not identity.leads_session(self.server):
            self.server = None
        return self.server

    def members(self) -> tuple[Identity, ...]:
        """Every live process of the attempt but its shim, oldest first; they are remembered as such. Blocks."""
        alive = family.members(shim=self._shim, server=self.server, remembered=self._remembered, uuid=self.uuid)
        if alive[:MEMBERS_LIMIT] != self._remembered:
            self._remembered = alive[:MEMBERS_LIMIT]
            content = AttemptMembers(members=list(self._remembered))
            with contextlib.suppress(OSError):  # a full disk: the next babysitter has parentage and the mark
                write_atomic(self.directory / "members.json", msgspec.json.encode(content))
        return alive

    async def sweep(self) -> None:
        """End what is left of an attempt whose shim and server are gone, without it or before it could (W50)."""
        if self._read("exit.json", AttemptEnd).detached:
            return
        leftovers = await asyncio.to_thread(self.members)
        if leftovers:
            log.warning("server.leftovers", attempt=self.uuid, pids=[process.pid for process in leftovers])
            await family.end(self.members, patience_s=family.MOMENT_S)

    def kill(self) -> None:
        """Kill whatever is left of an attempt that nobody looks after any more. Blocks, two seconds at most."""
        self.recall()
        family.kill(self.members)

    async def ended(self) -> Exited:
        """Wait for the end of the shim, or of the server when its shim is lost, and of all it left; tells how it ended."""
        for process in (self._shim, self.server):
            handle = None if process is None else identity.open_handle(process)
            if handle is not None:
                try:
                    await readable(handle)
                finally:
                    os.close(handle)
        for pid in {process.pid for process in (self._shim, self.server) if process is not None} | {self._child or 0}:
            _reap(pid)
        await self.sweep()
        return self.outcome()

    @property
    def has_ended(self) -> bool:
        """True when the attempt began once, in this boot of the machine, whether or not somebody saw its end."""
        began = self._read("server.json", AttemptServer).boot_id or self._read("exit.json", AttemptEnd).boot_id
        return began == identity.boot_id()

    @property
    def labels(self) -> AttemptLabels:
        """What `begin` was given, whichever babysitter that was."""
        labels = self._read("server.json", AttemptServer).labels
        return read_lenient(AttemptLabels, labels if isinstance(labels, dict) else {})

    def outcome(self) -> Exited:
        """How the attempt ended, from `exit.json`; unknown when nobody could write it."""
        end = self._read("exit.json", AttemptEnd)
        return Exited(code=end.code, signal=end.signal, error=end.error, left=end.left)

    def end(self, *, force: bool) -> None:
        """Have the server ended by the shim, and by ourselves should the shim be gone or fail to."""
        number = signal.SIGUSR1 if force else signal.SIGTERM
        reached = self._shim is not None and identity.send(self._shim, number)
        if self._shim is not None:
            identity.send(self._shim, signal.SIGCONT)  # a stopped shim heeds nothing, and its end is waited for
        if self._ender is not None:
            self._ender.cancel()
        patience_s = (0.0 if force else self._grace_s) + (SHIM_MARGIN_S if reached else 0.0)
        self._ender = asyncio.create_task(self._end_alone(patience_s, ask=not reached), name=f"end.{self.uuid[:8]}")

    async def close(self) -> None:
        """Forget the attempt without touching its processes."""
        if self._ender is not None:
            self._ender.cancel()
            await asyncio.wait([self._ender])

    def remove(self) -> None:
        """Delete the directory of an attempt that is over."""
        shutil.rmtree(self.directory, ignore_errors=True)

    async def _end_alone(self, patience_s: float, *, ask: bool) -> None:
        """End the server without the shim: TERM when it was not told yet, then KILL to every member."""
        if not ask:
            await asyncio.sleep(patience_s)
        await family.end(self.members, patience_s=patience_s if ask else 0.0)

    def _look(self) -> None:
        self.recall()
        if self.server is None and not (self.directory / "exit.json").exists():
            self._scan()

    def recall(self) -> None:
        """Read what the files tell of shim, server and members."""
        self.server = self._identity("server.json")
        self._shim = self._identity("claim")
        if self._shim is None and self._child is not None:
            self._shim = identity.identify(self._child)
        self._remembered = self._remembered or tuple(self._read("members.json", AttemptMembers).members)

    def _scan(self) -> None:
        """Find the server by parentage and mark (B3): the shim could not write, or died first."""
        self.server = next((member for member in self.members() if self._may_be_server(member)), None)

    def _may_be_server(self, member: Identity) -> bool:
        """True for a session's leader that is no longer the shim's own image, forked and yet to become the server."""
        return identity.leads_session(member) and os.fsencode(SHIM) not in identity.command(member.pid)

    def _identity(self, name: str) -> Identity | None:
        process = self._read(name, Identity)
        return process if process.pid > 1 else None

    def _read(self, name: str, kind: type[M]) -> M:
        return read_attempt_file(self.directory / name, kind)


async def readable(descriptor: int) -> None:
    """Wait until `descriptor` can be read (a pidfd: until its process ends)."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def on_readable() -> None:
        if not done.done():
            done.set_result(None)

    loop.add_reader(descriptor, on_readable)
    try:
        await done
    finally:
        loop.remove_reader(descriptor)


def _reap(pid: int) -> None:
    """Collect a process that has ended, if it is our child (as orphans are of the first process in a container)."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
