"""The server's output files: their sizes (is it busy?), their ends (why did it die?), and their rotation by size.

The server appends to its files itself and is never asked to reopen them: a file that grew too large is copied aside
and cut to nothing in place (an appending writer goes on at the new end). What the server writes in the instant between
the last byte copied and the cut is lost; that is the price of a writer that knows nothing of us.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from babysitter.held_file import FileMark, HeldFile
from babysitter.last_words import last_words
from common.log_tail import tail

SEARCHED_BYTES = 256 << 10
"""How far before the end of the output the cause of an end is looked for."""


@dataclass(slots=True)
class ServerLog:
    """Standard output and error of the server; `marks` are the sizes at the start of the current attempt.

    The files are followed when others rename, cut or remove them (`look`, which any thread may call).
    """

    stdout: Path
    stderr: Path
    marks: dict[Path, int] = field(default_factory=dict)
    _held: dict[Path, HeldFile] = field(default_factory=dict)
    _looking: threading.Lock = field(default_factory=threading.Lock)

    def mark(self) -> None:
        """A new attempt begins here; its files' directory is made when it is missing."""
        self.stdout.parent.mkdir(parents=True, exist_ok=True)
        with self._looking:
            self._let_go()
            for path in self._files():
                with contextlib.suppress(OSError):  # the shim, which cannot open it either, tells why
                    self._held[path] = HeldFile.at(path)
            self.marks = {path: _size(path) for path in (self.stdout, self.stderr)}

    def file_marks(self) -> list[FileMark | None]:
        """What the next babysitter needs to find these files again."""
        return [self._held[path].mark if path in self._held else None for path in self._files()]

    def adopt(self, pid: int, file_marks: Sequence[FileMark | None], stdout_mark: int | None) -> None:
        """Follow the files of a server that an earlier babysitter started.

        Args:
            pid: The server.
            file_marks: As that babysitter told them; of another length: only the files at their paths are believed.
            stdout_mark: The size of the standard output's file when the server was started; None: nobody told.
        """
        marks = file_marks if len(file_marks) == len(self._files()) else (None, None)
        with self._looking:
            self._let_go()
            for number, (path, mark) in enumerate(zip(self._files(), marks, strict=True), start=1):
                held = HeldFile.of_process(path, pid, number, mark)
                if held is not None:
                    self._held[path] = held
            self.marks = {path: _size(path) for path in self._files()}
            if stdout_mark is not None:
                self.marks[self.stdout] = stdout_mark

    def look(self) -> None:
        """Follow what happened to the files: what went elsewhere is brought back, a file that was cut begins anew.

        Raises:
            OSError: The disk is full, say.
        """
        with self._looking:
            for path, held in self._held.items():
                if held.bring_back():
                    self.marks[path] = 0
            for path, mark in self.marks.items():
                if _size(path) < mark:
                    self.marks[path] = 0

    def close(self) -> None:
        """Follow nothing any more."""
        with self._looking:
            self._let_go()

    def fingerprint(self) -> tuple[tuple[int, float], ...]:
        """Changes whenever the server writes."""
        return tuple((_size(path), _mtime(path)) for path in self._files())

    def tail(self, limit_bytes: int) -> str:
        """Why this attempt ended, by what it wrote to standard error, else to standard output; and where to see more."""
        outputs = {path: tail(path, SEARCHED_BYTES, since=self.marks.get(path, 0)) for path in self._files()}
        path = self.stderr if outputs[self.stderr] else self.stdout
        more = f"(more: {path})"
        if len(outputs[path].encode()) <= limit_bytes and path == self.stdout:
            return outputs[path]
        words = last_words(outputs[path], limit_bytes - len(more.encode()) - 1, elsewhere=outputs[self.stdout])
        return words if words == outputs[path] else f"{words}\n{more}"

    def _files(self) -> tuple[Path, Path]:
        return self.stdout, self.stderr

    def _let_go(self) -> None:
        for held in self._held.values():
            held.close()
        self._held = {}


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
