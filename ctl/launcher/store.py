"""What `up` started, in files: `run/NAME.json` holds the pid, and what proves that the pid is still ours."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from common.atomic_file import read_bounded, write_atomic
from ctl.codes import Code
from ctl.problem import Problem

_LIMIT_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Started:
    """One process that `up` started. `mark` is a uuid in its environment; `started_at` is ISO 8601."""

    name: str
    kind: str
    module: str
    pid: int
    mark: str
    url: str
    port: int
    serves: str
    log: str
    started_at: str
    config: str | None = None


class Store:
    """The state directory.

    Args:
        root: It; made on the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = root / "run"
        self.logs = root / "logs"

    def prepare(self) -> None:
        """Make the directories, for this user only.

        Raises:
            Problem: They cannot be made.
        """
        try:
            for folder in (self.root, self.run, self.logs, self.root / "data"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Problem(
                f"{self.root}: {error.strerror}", hint="choose another place with --state-dir", code=Code.CONFIG
            ) from error

    def all(self) -> list[Started]:
        """Everything remembered, alive or not; a file that is no record counts as none."""
        found = [self._read(path) for path in sorted(self.run.glob("*.json"))]
        return [started for started in found if started is not None]

    def get(self, name: str) -> Started | None:
        """One of them."""
        return self._read(self.run / f"{name}.json")

    def put(self, started: Started) -> None:
        """Remember a process."""
        data = json.dumps(asdict(started), indent=1).encode()
        write_atomic(self.run / f"{started.name}.json", data + b"\n")

    def forget(self, name: str) -> None:
        """It is gone."""
        (self.run / f"{name}.json").unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One `up` or `down` at a time.

        Raises:
            Problem: Another one is at work.
        """
        descriptor = os.open(self.run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise Problem(f"another up or down works in {self.root}", hint="wait for it and try again") from error
        finally:
            os.close(descriptor)

    def _read(self, path: Path) -> Started | None:
        try:
            return Started(**json.loads(read_bounded(path, limit_bytes=_LIMIT_BYTES)))
        except (OSError, ValueError, TypeError):
            return None
