"""The one writer: takes commands in turn, writes the store, then the catalogue, then tells those who watch.

A command that needs no store (nearly every heartbeat) is done at once when nothing is being written: the event loop
runs one thing at a time, so there is still one writer, and a heartbeat costs no task switch.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from common.clock import Clock
from registry.catalogue import Catalogue, Decision, Revised
from registry.model import Command, Put, Refused, Removed
from registry.store import Store, StoreError, StoreUnavailable

log = structlog.get_logger(__name__)
QUEUE_LIMIT = 20_000
Listener = Callable[[Sequence[Revised]], None]


@dataclass(slots=True)
class Writer:
    """Owns `catalogue` and `store`; everybody else reads the one and never touches the other.

    Args:
        catalogue: What there is.
        store: What outlives this process.
        clock: Monotonic time of leases.
        listeners: Called with every batch of committed changes, in order of revision.
    """

    catalogue: Catalogue
    store: Store
    clock: Clock
    listeners: list[Listener] = field(default_factory=list)
    _queue: asyncio.Queue[tuple[Command, asyncio.Future[Decision]]] = field(
        default_factory=lambda: asyncio.Queue(QUEUE_LIMIT)
    )
    _writing: bool = False

    async def submit(self, command: Command) -> Decision:
        """Have `command` done; returns when it is.

        Raises:
            Refused: The catalogue will not; nothing has changed.
            StoreError: The store could not; nothing has changed.
        """
        if not self._writing and self._queue.empty():
            decision = self.catalogue.decide(command, self.clock.monotonic())
            if not _durable(decision):
                self._commit(decision)
                return decision
        done: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((command, done))
        except asyncio.QueueFull as error:
            raise StoreUnavailable(f"{QUEUE_LIMIT} commands are waiting to be written") from error
        return await done

    async def run(self) -> None:
        """Do queued commands, for ever."""
        while True:
            command, done = await self._queue.get()
            self._writing = True
            try:
                decision = await self._write(command)
            except (Refused, StoreError) as error:
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(decision)
            finally:
                self._writing = False

    async def _write(self, command: Command) -> Decision:
        decision = self.catalogue.decide(command, self.clock.monotonic())
        if durable := _durable(decision):
            await self.store.write(durable)
        self._commit(decision)
        return decision

    def _commit(self, decision: Decision) -> None:
        revised = self.catalogue.commit(decision, self.clock.monotonic())
        if revised:
            for listener in self.listeners:
                listener(revised)


def _durable(decision: Decision) -> list[Put | Removed]:
    return [change for change in decision.changes if isinstance(change, Removed) or change.durable]
