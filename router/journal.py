"""What was counted and is not at the registry yet, in files of the master's (docs/usage.md).

A file is one batch: `WRITER-SEQUENCE.jsonl`, where the writer is one life of the router. It is appended to until it is
shipped; from then on it never changes, so that a batch that is sent twice is the same. Files of other writers are left from
lives that were killed, or are of workers whose master was, and are shipped as they are.
"""

import contextlib
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from common import tokens
from common.atomic_file import read_bounded, write_atomic
from common.tokens import FlatRow, Rows
from common.wire.usage import UsageLine

log = structlog.get_logger(__name__)
FILE_LIMIT_BYTES = 64 << 20
COMPACT_BYTES = 1 << 20
"""A file that grew by so much is written anew, as the sum that it is."""
TOTAL_ROWS_MOST = 65_536
"""Of all hours in a batch, 8 MB: a registry that is away for days fills no disk. Later names are counted as `(other)`."""
_NAME = re.compile(r"([0-9a-f]{16})-([0-9]{1,15})\.jsonl")
_decode = msgspec.json.Decoder(tuple[int, list[UsageLine]]).decode


@dataclass
class Batch:
    """Counts by hour (since the epoch), and the file they are in."""

    writer: str
    sequence: int
    path: Path
    hours: dict[int, Rows] = field(default_factory=dict)

    def add(self, hour: int, rows: Iterable[FlatRow]) -> None:
        """Count them."""
        total = sum(map(len, self.hours.values()))
        tokens.add_all(self.hours.setdefault(hour, {}), rows, tokens.ROWS_MOST if total < TOTAL_ROWS_MOST else 0)

    def text(self) -> bytes:
        """All of it, as the file has it."""
        return b"".join(_line(hour, tokens.flat(rows)) for hour, rows in self.hours.items())


def folder_of(data_dir: Path, port: int) -> Path:
    """Where a router keeps its files."""
    return data_dir / f"router-{port}-usage"


def leave(folder: Path, hour: int, rows: list[FlatRow]) -> None:
    """Write a batch of its own, for the next master: a worker's last word when there is none to hear it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(folder / f"{secrets.token_hex(8)}-1.jsonl", _line(hour, rows))
    except OSError as error:
        log.error("usage.not_kept", folder=str(folder), reason=str(error))


class Journal:
    """The files of one router; touched from the master's loop only.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer = secrets.token_hex(8)
        self._open = self._next(1)
        self._bytes = 0
        self._whole_bytes = 0
        """What the open file had when it was written anew last."""
        self._is_behind = False
        """The file lacks something: the disk refused it."""

    def _next(self, sequence: int) -> Batch:
        return Batch(self._writer, sequence, self._folder / f"{self._writer}-{sequence}.jsonl")

    def add(self, hour: int, rows: list[FlatRow]) -> None:
        """Count `rows`, and have them on disk; what the disk refuses is tried again with what comes next."""
        self._open.add(hour, rows)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._is_behind or self._bytes > self._whole_bytes * 2 + COMPACT_BYTES:
                text = self._open.text()
                write_atomic(self._open.path, text)
                self._bytes = self._whole_bytes = len(text)
                self._is_behind = False
            else:
                self._append(_line(hour, rows))
        except OSError as error:
            if not self._is_behind:
                log.error("usage.not_kept", folder=str(self._folder), reason=str(error))
            self._is_behind = True

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._open.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError("the disk took a part of it only")
        finally:
            os.close(descriptor)
        self._bytes += len(line)

    def seal(self) -> Batch | None:
        """The open batch, to be shipped as it is now; None while it is empty."""
        batch = self._open
        if not batch.hours:
            return None
        self._open = self._next(batch.sequence + 1)
        self._bytes = self._whole_bytes = 0
        self._is_behind = False
        return batch

    def left(self) -> list[Batch]:
        """Batches of other writers, the oldest numbers first; a line that cannot be read, as a half-written one, is passed over."""
        found = []
        for path in self._folder.glob("*.jsonl"):
            name = _NAME.fullmatch(path.name)
            if name is not None and name[1] != self._writer:
                batch = Batch(name[1], int(name[2]), path)
                if self._read(batch):
                    found.append(batch)
        return sorted(found, key=lambda batch: (batch.writer, batch.sequence))

    def _read(self, batch: Batch) -> bool:
        """False for a file that cannot be read at all; it is put aside."""
        try:
            lines = read_bounded(batch.path, limit_bytes=FILE_LIMIT_BYTES).splitlines()
        except (OSError, ValueError) as error:
            log.error("usage.file_unreadable", path=str(batch.path), reason=str(error))
            with contextlib.suppress(OSError):
                batch.path.rename(batch.path.with_suffix(".unreadable"))
            return False
        for line in lines:
            try:
                hour, rows = _decode(line)
            except (msgspec.MsgspecError, ValueError) as error:
                log.warning("usage.line_unreadable", path=str(batch.path), reason=str(error))
                continue
            batch.add(hour, rows)
        return True

    def move(self, batch: Batch, hour: int, to: int) -> None:
        """Count a part of a batch under another hour, and no more under its own, however often the rest is sent."""
        self.add(to, tokens.flat(batch.hours.pop(hour)))
        try:
            write_atomic(batch.path, batch.text())
        except OSError as error:
            log.error("usage.file_not_removed", path=str(batch.path), reason=str(error))

    def remove(self, batch: Batch) -> None:
        """It is at the registry."""
        try:
            batch.path.unlink(missing_ok=True)
        except OSError as error:
            log.error("usage.file_not_removed", path=str(batch.path), reason=str(error))


def _line(hour: int, rows: list[FlatRow]) -> bytes:
    return msgspec.json.encode((hour, rows)) + b"\n"
