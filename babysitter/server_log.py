"""The server's output files: their sizes (is it busy?), their ends (why did it die?), and their rotation by size.

The server appends to its files itself and is never asked to reopen them: a file that grew too large is copied aside
and cut to nothing in place (an appending writer goes on at the new end). What the server writes in the instant between
the last byte copied and the cut is lost; that is the price of a writer that knows nothing of us.
"""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class ServerLog:
    """Standard output and error of the server; `marks` are the sizes at the start of the current attempt."""

    stdout: Path
    stderr: Path
    marks: dict[Path, int] = field(default_factory=dict)

    def mark(self) -> None:
        """A new attempt begins here; its files' directory is made when it is missing."""
        self.stdout.parent.mkdir(parents=True, exist_ok=True)
        self.marks = {path: _size(path) for path in (self.stdout, self.stderr)}

    def fingerprint(self) -> tuple[tuple[int, float], ...]:
        """Changes whenever the server writes."""
        return tuple((_size(path), _mtime(path)) for path in (self.stdout, self.stderr))

    def tail(self, limit_bytes: int) -> str:
        """The end of what this attempt wrote: of standard error, else of standard output."""
        for path in (self.stderr, self.stdout):
            text = tail(path, limit_bytes, since=self.marks.get(path, 0))
            if text:
                return text
        return ""


def rotate(path: Path, *, limit_bytes: int, keep: int) -> bool:
    """Move the content of a file larger than `limit_bytes` to `path.1` (older: `.2` …, at most `keep`); True if done.

    Raises:
        OSError: The disk is full. The file is then cut all the same, for a full disk helps nobody (A18).
    """
    if _size(path) <= limit_bytes:
        return False
    aged = [path.with_name(f"{path.name}.{number}") for number in range(1, keep + 1)]
    try:
        for younger, older in zip(reversed(aged[:-1]), reversed(aged[1:]), strict=True):
            if younger.exists():
                younger.replace(older)
        if aged:
            with path.open("rb") as source, aged[0].open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except OSError:
        if aged:
            aged[0].unlink(missing_ok=True)
        raise
    finally:
        os.truncate(path, 0)
    return True


def tail(path: Path, limit_bytes: int, *, since: int = 0) -> str:
    """The last `limit_bytes` of a file after offset `since`, from a line's beginning; "" when it is missing."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            first = max(since if since <= end else 0, end - limit_bytes)
            file.seek(first)
            raw = file.read(limit_bytes)
    except OSError:
        return ""
    if first > since and b"\n" in raw:
        raw = raw.partition(b"\n")[2]
    return raw.decode("utf-8", "replace").rstrip()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
