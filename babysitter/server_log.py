"""The server's output files: their sizes (is it busy?) and their ends (why did it die?)."""

import os
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
