"""The end of a log, and what is written after it. A log may be missing, be cut, or be put aside into `NAME.1`."""

import os
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 64 << 10
LAST_BYTES = 8 << 20
"""How far back a request for many lines may look."""
LINE_LIMIT = 16 << 10


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


def last_lines(path: Path, count: int, limit_bytes: int) -> list[str]:
    """The last `count` lines of a log, those that a rotation has just put into `path.1` included (W32)."""
    lines: list[str] = []
    for part in (path, path.with_name(f"{path.name}.1")):
        if len(lines) < count and (text := tail(part, limit_bytes)):
            lines = text.split("\n")[len(lines) - count :] + lines
    return lines


@dataclass(slots=True)
class LogFile:
    """A growing file, read from `offset` on, after what is `older`; one that was cut is read from its new beginning."""

    path: Path
    offset: int
    rest: bytes = b""
    older: bytes = b""

    def read(self) -> bytes:
        """The next bytes, at most a chunk; empty when there are none yet."""
        if self.older:
            raw, self.older = self.older, b""
            return raw
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                self.offset = 0 if size < self.offset else self.offset
                file.seek(self.offset)
                raw = file.read(CHUNK_BYTES)
        except OSError:
            return b""
        self.offset += len(raw)
        return raw

    def lines(self) -> list[str]:
        """The lines that were ended since."""
        *whole, self.rest = (self.rest + self.read()).split(b"\n")
        if len(self.rest) > LINE_LIMIT:
            whole.append(self.rest)
            self.rest = b""
        return [line.decode("utf-8", "replace") for line in whole]


def open_log(path: Path, tail: int) -> LogFile:
    """The file, to be read from its last `tail` lines on."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            first = max(0, size - (CHUNK_BYTES if tail <= CHUNK_BYTES // 80 else LAST_BYTES))
            file.seek(first)
            raw = file.read(size - first)
    except OSError:
        size, raw = 0, b""
    ended = raw.endswith(b"\n")
    lines = raw.split(b"\n")[: -1 if ended else None] if raw else []
    kept = b"\n".join(lines[-tail:] if tail else [])
    offset = size - (len(kept) + ended if tail else 0)
    missing = tail - len(lines) if offset == 0 else 0
    older = last_lines(path.with_name(f"{path.name}.1"), missing, LAST_BYTES) if missing > 0 else []
    return LogFile(path, offset, older="".join(f"{line}\n" for line in older).encode())
