"""How many servers of a node are spawned at the same time: a few lock files, shared by all babysitters of a user (B19).

A slot is held only from the start of a shim until its server runs. It is a courtesy to the node: a babysitter that
cannot use the directory, or waits for too long behind one that hangs, starts its server all the same.
"""

import asyncio
import contextlib
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog

from common import lock_file

log = structlog.get_logger(__name__)
POLL_S = 0.05
PATIENCE_S = 60.0


class Slots:
    """The slots of this node.

    Args:
        count: How many there are.
        directory: Where their files are; None: one per user under the system's directory for temporary files.
        patience_s: Longest wait for one.
    """

    def __init__(self, count: int, *, directory: Path | None = None, patience_s: float = PATIENCE_S) -> None:
        self._directory = directory or Path(tempfile.gettempdir()) / f"svc-babysitter-starts-{os.geteuid()}"
        self._count = count
        self._patience_s = patience_s

    @contextlib.asynccontextmanager
    async def held(self, is_wanted: Callable[[], bool]) -> AsyncIterator[None]:
        """Hold a slot, once one is free; a start that is not `is_wanted` any more waits no longer."""
        descriptor = await self._wait(is_wanted)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    async def _wait(self, is_wanted: Callable[[], bool]) -> int | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience_s
        try:
            self._make_directory()
            while is_wanted():
                descriptor = self._take()
                if descriptor is not None:
                    return descriptor
                if loop.time() >= deadline:
                    log.warning("slots.all_taken", directory=str(self._directory), waited_s=self._patience_s)
                    return None
                await asyncio.sleep(POLL_S)
        except OSError as error:
            log.warning("slots.unusable", directory=str(self._directory), reason=str(error))
        return None

    def _make_directory(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self._directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(f"{self._directory} is not a directory of ours")

    def _take(self) -> int | None:
        """The descriptor of a slot that is free now; its lock ends with it."""
        for number in range(self._count):
            with contextlib.suppress(lock_file.Held):
                return lock_file.take(self._directory / str(number))
        return None
