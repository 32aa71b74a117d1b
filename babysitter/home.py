"""Where a replica lives on disk: its directory, its lock, its state file, its attempts (docs/contract.md 5, B2).

`{root}/state/{name}.json` is the state, `{root}/{name}/` the directory. The lock is held for the babysitter's life, on
a file that is never replaced, so that two babysitters can never look after one replica.
"""

import contextlib
import os
import uuid
from pathlib import Path

from babysitter.attempt import ServerAttempt
from babysitter.state_file import StateFile
from common import lock_file
from common.atomic_file import write_atomic
from common.exits import ConfigurationError

KEPT_ATTEMPTS = 3


class Home:
    """The directory of replica `name` under `root`."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root.absolute()
        self.name = name
        self.directory = self.root / name
        self.attempts = self.directory / "attempts"
        self.state = StateFile(self.root / "state" / f"{name}.json")
        self._lock: int | None = None

    def acquire(self) -> None:
        """Make the directory and take its lock.

        Raises:
            ConfigurationError: Another babysitter has it, or the directory cannot be made.
        """
        try:
            self.attempts.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = lock_file.take(self.directory / "lock")
        except OSError as error:
            raise ConfigurationError(f"{self.name}: cannot use {self.directory}: {error.strerror}") from error
        except lock_file.Held as held:
            raise ConfigurationError(
                f"{self.name}: another babysitter{held.by} looks after {self.directory}; stop it, or give this one another name"
            ) from None
        with contextlib.suppress(OSError):  # for operators only; the lock is what counts
            self.state.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self.pid_file, f"{os.getpid()}\n".encode())

    @property
    def pid_file(self) -> Path:
        """`state/{name}.pid`, the babysitter's pid (docs/contract.md 5)."""
        return self.state.path.with_name(f"{self.name}.pid")

    def release(self) -> None:
        """Let another babysitter have it."""
        if self._lock is not None:
            self.pid_file.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def attempt(self, identifier: str, *, grace_s: float) -> ServerAttempt:
        """The attempt of that uuid, begun or not."""
        return ServerAttempt(self.attempts / identifier, grace_s=grace_s)

    def new_attempt(self) -> str:
        """A uuid for the next attempt."""
        return uuid.uuid4().hex

    def live_attempts(self) -> list[str]:
        """Uuids of attempts whose shim lives: how a server is found when the state file is lost (B8)."""
        return [path.name for path in self.attempts.iterdir() if lock_file.is_held(path / "claim")]

    def forget_old_attempts(self, current: str | None) -> None:
        """Remove the directories of attempts that are over, but for the last few."""
        over = [
            path for path in self.attempts.iterdir() if path.name != current and not lock_file.is_held(path / "claim")
        ]
        over.sort(key=lambda path: path.stat().st_mtime)
        for path in over[:-KEPT_ATTEMPTS]:
            ServerAttempt(path, grace_s=0).remove()
