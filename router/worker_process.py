"""One worker's process, as the master holds it."""

import asyncio
import contextlib
from dataclasses import dataclass, field

from router import feed


@dataclass(slots=True, eq=False)
class Worker:
    """One running worker; `over` once its process has been awaited."""

    process: asyncio.subprocess.Process
    writer: asyncio.StreamWriter
    block: int
    """Of the shared counters; its own until it is over."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    status: feed.WorkerStatus | None = None
    """The latest; None until it serves."""
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    """It serves, or it ended before it did."""

    @property
    def name(self) -> str:
        """Another one for each."""
        return str(self.process.pid)

    def kill(self) -> None:
        """End it now, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
