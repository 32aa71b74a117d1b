"""Following run_meta.json: looked at a few times per second, read only when it changed.

Looked at instead of watched: the working directories of clusters lie on network file systems, where inotify tells
nothing of what another host writes, and one stat per look costs nothing that can be measured.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from babysitter.run_meta import LIMIT_BYTES, Jobs, UnusableRunMeta, parse
from common.atomic_file import read_bounded

log = structlog.get_logger(__name__)
INTERVAL_S = 0.25
Mark = tuple[int, int, int]
"""Inode, time of change in ns, and size: what a change cannot leave as it was."""


def mark_of(path: Path) -> Mark | None:
    """The file's mark, or None when it is missing or no regular file of its own (a link is not followed)."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return (status.st_ino, status.st_mtime_ns, status.st_size)


@dataclass(slots=True)
class RunMetaTail:
    """Follows one file.

    Args:
        path: The file.
        stale: Its mark before the server was started: while it is the same, the file is an earlier run's.
        tell: Called with the jobs whenever the file tells some.
    """

    path: Path
    stale: Mark | None
    tell: Callable[[Jobs], None]
    _seen: Mark | None = None
    _complained: str | None = None

    async def follow(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(INTERVAL_S)

    def look(self) -> Jobs | UnusableRunMeta | None:
        """Look once; None when nothing is new."""
        mark = mark_of(self.path)
        if mark is None or mark in (self.stale, self._seen):
            return None
        try:
            content = parse(read_bounded(self.path, limit_bytes=LIMIT_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            content = UnusableRunMeta(
                os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            )
        if isinstance(content, UnusableRunMeta):
            if content.reason != self._complained:
                log.warning("run_meta.unusable", file=str(self.path), reason=content.reason)
            self._complained = content.reason
            return content
        self._seen, self._complained = mark, None
        self.tell(content)
        return content
