"""A file that a server writes, followed by what it is and not by its name (W27).

logrotate renames it, an operator removes it; the server, which never opens it again, then writes to a file that has
another name or none. What it writes from then on is moved back under the name: appended to the path's file, and cut
from where it was written. So a renamed file stays as it was put aside, and a removed one takes no room. What the server
writes in the instant between the last byte copied and the cut is lost, as in every rotation by copy and cut.
"""

import contextlib
import os
from pathlib import Path
from typing import Self

CHUNK_BYTES = 1 << 20
FileMark = tuple[int, int]
"""What tells a file from every other: device and inode."""
FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC


class HeldFile:
    """The file that stands at `path` now, or stood there when the server was started.

    Args:
        path: Its name.
        descriptor: The file; closed by `close`.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._seen = os.fstat(descriptor).st_size
        self._kept: int | None = None

    @classmethod
    def at(cls, path: Path) -> Self:
        """The file at `path`, made when it is missing.

        Raises:
            OSError: It cannot be opened.
        """
        return cls(path, os.open(path, FLAGS | os.O_CREAT, 0o600))

    @classmethod
    def of_process(cls, path: Path, pid: int, number: int, mark: FileMark | None) -> Self | None:
        """What process `pid` has open as `number`; None when that is not the file it was started with.

        Args:
            path: The name that the file had.
            pid: The server.
            number: Its descriptor, 1 or 2.
            mark: `mark` of the file it was started with; None: then only the file at `path` now is believed.
        """
        try:
            held = cls(path, os.open(f"/proc/{pid}/fd/{number}", FLAGS))
        except OSError:
            return None
        with contextlib.suppress(OSError):
            if held.mark == mark or (mark is None and held.mark == _mark(path.stat())):
                return held
        held.close()
        return None

    @property
    def mark(self) -> FileMark:
        """The file's mark."""
        return _mark(os.fstat(self._descriptor))

    def bring_back(self) -> bool:
        """Move what the server wrote elsewhere back to `path`; True when the file at `path` is another than before.

        Raises:
            OSError: The disk is full, say. What could not be moved is cut all the same: nothing may grow without bound.
        """
        held = os.fstat(self._descriptor)
        with contextlib.suppress(FileNotFoundError):
            if _mark(self.path.stat()) == _mark(held):
                self._seen, self._kept = held.st_size, None
                return False
        is_news = self._kept is None
        first = min(self._seen, held.st_size) if self._kept is None else min(self._kept, held.st_size)
        self._kept = 0 if held.st_nlink == 0 else held.st_size if self._kept is None else self._kept
        try:
            self._append_from(first)
        finally:
            if os.fstat(self._descriptor).st_size > self._kept:
                os.ftruncate(self._descriptor, self._kept)
        return is_news

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)

    def _append_from(self, offset: int) -> None:
        target = -1
        try:
            while chunk := os.pread(self._descriptor, CHUNK_BYTES, offset):
                if target < 0:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    target = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                offset += os.write(target, chunk)
        finally:
            if target >= 0:
                os.close(target)


def _mark(status: os.stat_result) -> FileMark:
    return status.st_dev, status.st_ino
