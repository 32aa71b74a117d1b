"""The one writer: takes commands in turn, writes the store, then the catalogue, then tells those who watch.

A command that needs no store (nearly every heartbeat) is done at once when nothing is being written: the event loop
runs one thing at a time, so there is still one writer, and a heartbeat costs no task switch. While something is written a
heartbeat is done at once all the same if nothing that waits concerns its name: no slow store keeps a fleet's leases waiting.

A heartbeat and the end of a lease never fail for the store's sake: what a heartbeat changed is shown, remembered as
unwritten, and written when the store takes it; a record that ended would end again after a restart. With a shared store, what other registries did comes through the same queue.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import structlog

from common.clock import Clock
from common.paced import paced
from registry.core.catalogue import Catalogue, Decision, Revised
from registry.core.expiry import ttl_s
from registry.core.model import (
    Command,
    CommandRefused,
    Conflict,
    Forget,
    Learn,
    LeaseEnd,
    Register,
    Removed,
    Renew,
    Rewrite,
    Sweep,
    Unknown,
    Upsert,
)
from registry.core.store import (
    Away,
    Back,
    Event,
    Store,
    StoreConflict,
    StoreError,
    StoreUnavailable,
    Vanished,
    Written,
)

log = structlog.get_logger(__name__)
QUEUE_LIMIT = 20_000
CONFLICT_TRIES = 5
REGISTER_WITHIN_S = 2.0
"""Less than `common.discovery.registry_client.CALL_TIMEOUT_S`: who gave up asks another registry, and would have it done twice."""
EVENTS_AHEAD = 5000
"""Of the commands waiting, when what a store tells has to wait as well."""
SIDE_BY_SIDE = 32
"""Writes of different names under way at a shared store, which puts them on disk together: each alone waits for that twice."""


@dataclass(frozen=True, slots=True)
class CheckStore:
    """Ask a shared store about one name now: before a refusal, for this registry may only not have heard yet."""

    name: str


Item = Command | Event | CheckStore
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
    away: str | None = None
    """Why a shared store cannot be reached; None while it can."""
    unwritten: set[str] = field(default_factory=set)
    """Records whose last change the store has not got."""
    write_s: float = 0.0
    """How long a write of the store takes now: an average, in which each weighs a tenth."""
    _queue: asyncio.Queue[tuple[Item, float, asyncio.Future[Decision]]] = field(
        default_factory=lambda: asyncio.Queue(QUEUE_LIMIT)
    )
    _busy: Counter[str | None] = field(default_factory=Counter)
    """What is queued or being written, by name; under None what concerns more than one."""
    _late_s: float = 0.0
    """How long the latest command waited for its turn."""

    async def submit(self, command: Command) -> Decision:
        """Have `command` done; returns when it is.

        Raises:
            CommandRefused: The catalogue will not; nothing has changed.
            StoreError: The store could not; nothing has changed.
        """
        if not self.store.shared:
            return self._at_once(command) or await self._enqueue(command)
        try:
            return await self._submit_shared(command)
        except (Unknown, Conflict):
            name = command.registration.name if isinstance(command, Register) else getattr(command, "name", None)
            if name is None or self.away is not None:
                raise
            await self._enqueue(CheckStore(name))
        return await self._submit_shared(command)

    def check_in_time(self) -> None:
        """Turn a registration away before it costs anything, while those that are done now have waited for too long.

        Raises:
            StoreUnavailable: It would be refused when its turn comes.
        """
        if self._late_s > REGISTER_WITHIN_S and self._queue.qsize():
            raise StoreUnavailable(f"{self._queue.qsize()} commands are waiting to be written; ask again later")

    async def _submit_shared(self, command: Command) -> Decision:
        decision = self._at_once(command) or await self._enqueue(command)
        if isinstance(command, Renew):
            self._renew_in_store(command.name)
        return decision

    def renew_at_once(self, beat: Renew) -> bool:
        """Have a heartbeat done that need not wait; False when nothing was done, because it must, or would be refused."""
        try:
            decision = self._at_once(beat)
        except CommandRefused:
            return False
        if decision is None:
            return False
        if self.store.shared:
            self._renew_in_store(beat.name)
        return True

    def _at_once(self, command: Command) -> Decision | None:
        """Do what needs no store, if nothing that is being written concerns it; None when it has to wait its turn."""
        if self._busy and not (isinstance(command, Renew) and self._is_free(command)):
            return None
        decision = self.catalogue.decide(command, self.clock.monotonic())
        for change in decision.changes:
            if change.durable:
                return None
        self._commit(decision)
        return decision

    async def run(self) -> None:
        """Do queued commands, for ever: with a shared store those of different names side by side, else in turn."""
        running: dict[str, asyncio.Task[None]] = {}

        async def beside(name: str, item: Item, queued_at: float, done: asyncio.Future[Decision]) -> None:
            try:
                await self._finish(item, queued_at, done)
            finally:
                del running[name]

        async with asyncio.TaskGroup() as tasks:
            while True:
                item, queued_at, done = await self._queue.get()
                self._late_s = self.clock.monotonic() - queued_at
                name = _about(item) if self.store.shared else None
                while running and (name is None or name in running or len(running) >= SIDE_BY_SIDE):
                    await asyncio.wait(running.values(), return_when=asyncio.FIRST_COMPLETED)
                if name is None:
                    await self._finish(item, queued_at, done)
                else:
                    running[name] = tasks.create_task(beside(name, item, queued_at, done))

    async def _finish(self, item: Item, queued_at: float, done: asyncio.Future[Decision]) -> None:
        try:
            if isinstance(item, Register) and self.clock.monotonic() - queued_at > REGISTER_WITHIN_S:
                raise StoreUnavailable(f"{self._queue.qsize()} commands are waiting to be written; ask again later")
            decision = await self._do(item)
        except (CommandRefused, StoreError) as error:
            if not done.done():
                done.set_exception(error)
        else:
            if not done.done():
                done.set_result(decision)
        finally:
            about = _about(item)
            self._busy[about] -= 1
            if not self._busy[about]:
                del self._busy[about]

    async def follow(self) -> None:
        """Take in what a shared store tells, for ever."""
        async with aclosing(self.store.events()) as events:
            async for event in events:
                if isinstance(event, Away):
                    self.away = event.reason  # at once: what is queued shall not wait for a store that is not there
                    log.warning("store.away", reason=event.reason)
                if isinstance(event, Written | Vanished):
                    if self._is_free(event):
                        self._take_in_one(event)
                        continue
                    if self._queue.qsize() < EVENTS_AHEAD:
                        self._put_in_line(event).add_done_callback(_told)
                        continue
                try:
                    await self._enqueue(event)
                except StoreError as error:
                    log.warning("store.event_failed", store_event=type(event).__name__, reason=str(error))

    async def rewrite(self) -> None:
        """Try again to write what the store could not take; ends where it takes none of many."""
        waiting = sorted(self.unwritten)
        for begin in range(0, len(waiting), SIDE_BY_SIDE):
            names = waiting[begin : begin + SIDE_BY_SIDE]
            failed = [error for error in await asyncio.gather(*map(self._rewrite, names)) if error is not None]
            if len(failed) == len(names):
                first, reason = names[0], str(failed[0])
                log.warning("store.rewrite_failed", name=first, waiting=len(self.unwritten), reason=reason)
                return

    async def _rewrite(self, name: str) -> StoreError | None:
        """What the store says, if it still cannot."""
        try:
            await self._enqueue(Rewrite(name))
        except CommandRefused:
            self.unwritten.discard(name)
        except StoreError as error:
            return error
        return None

    def _is_free(self, item: Item) -> bool:
        """Whether nothing that waits or is being written concerns its name."""
        return not self._busy or self._busy.keys().isdisjoint((None, _about(item)))

    async def _enqueue(self, item: Item) -> Decision:
        return await self._put_in_line(item)

    def _put_in_line(self, item: Item) -> asyncio.Future[Decision]:
        done: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((item, self.clock.monotonic(), done))
        except asyncio.QueueFull as error:
            raise StoreUnavailable(f"{QUEUE_LIMIT} commands are waiting to be written") from error
        self._busy[_about(item)] += 1
        return done

    async def _do(self, item: Item) -> Decision:
        match item:
            case CheckStore(name):
                if (event := await self.store.look(name)) is not None:
                    self._take_in_one(event)
                return Decision()
            case Written() | Vanished():
                self._take_in_one(item)
                return Decision()
            case Away():
                return Decision()  # every write before it is over
            case Back():
                await self._come_back(item)
                return Decision()
            case Sweep() if self.away:
                return Decision()  # expiry stops while leases cannot be asked for
            case _:
                return await self._write(item)

    async def _write(self, command: Command) -> Decision:
        for _ in range(CONFLICT_TRIES):
            decision = self.catalogue.decide(command, self.clock.monotonic())
            try:
                decision = await self._stored(decision)
            except StoreConflict as conflict:
                self._learn_from(conflict)
                continue
            except StoreError:
                if not isinstance(command, Renew | Sweep):
                    raise
                decision = self._in_memory(decision)
            self._commit(decision)
            return decision
        raise StoreUnavailable(f"other registries change {command!r} faster than it can be written")

    async def _stored(self, decision: Decision) -> Decision:
        """Write what is durable; the decision comes back as the store remembers it."""
        durable = _durable(decision)
        if not durable:
            return decision
        if self.away is not None:
            raise StoreUnavailable(self.away)
        began = self.clock.monotonic()
        try:
            written = await self.store.write(durable)
        finally:
            self.write_s += 0.1 * (self.clock.monotonic() - began - self.write_s)
        self.unwritten.difference_update(change.name for change in durable)
        if len(decision.changes) > len(durable):
            kept = [change for change in decision.changes if change not in durable]
            return replace(decision, changes=(*kept, *written))
        return replace(decision, changes=tuple(written))

    def _in_memory(self, decision: Decision) -> Decision:
        """The same decision, with nothing in it for the store."""
        self.unwritten.update(change.name for change in _durable(decision))
        kept = tuple(replace(it, durable=False) if isinstance(it, Upsert) else it for it in decision.changes)
        return replace(decision, changes=kept)

    def _commit(self, decision: Decision) -> None:
        revised = self.catalogue.commit(decision, self.clock.monotonic())
        if revised:
            for listener in self.listeners:
                listener(revised)

    def _apply(self, command: Command) -> None:
        """Do what needs no store, if it still makes sense."""
        try:
            self._commit(self.catalogue.decide(command, self.clock.monotonic()))
        except CommandRefused as error:
            log.debug("store.event_too_late", reason=str(error))

    # Shared stores.

    def _renew_in_store(self, name: str) -> None:
        """Have a lease renewed where it is held; a record without one is written again soon."""
        entry = self.catalogue.get(name)
        if entry is not None and entry.held and not self.store.renew(name):
            entry.held = False
            self.unwritten.add(name)

    def _learn_from(self, conflict: StoreConflict) -> None:
        self._apply(Forget(conflict.name) if conflict.current is None else Learn(conflict.current))

    def _take_in_one(self, event: Written | Vanished) -> None:
        """Bring the catalogue up to date, unless it knew this."""
        if not self.store.accept(event):
            return
        self.catalogue.raise_floor(event.version)
        if isinstance(event, Written):
            self._apply(Learn(event.instance))
        else:
            self._lease_ended(event.name, deregistered=event.deregistered)

    async def _come_back(self, back: Back) -> None:
        await self._resync(back)
        self.away = None
        log.warning("store.back", services=len(self.catalogue))

    def _lease_ended(self, name: str, *, deregistered: bool) -> None:
        """A key is gone; of a record that beats here all the same, it is written again."""
        if deregistered:
            self._apply(Forget(name))
            return
        entry = self.catalogue.get(name)
        if entry is None:
            return
        entry.held = False
        if self.clock.monotonic() - entry.renewed_at < ttl_s(entry.instance):
            log.info("store.lease_lost", name=name)
            self.unwritten.add(name)
        else:
            self._apply(LeaseEnd(name))

    async def _resync(self, back: Back) -> None:
        """Compare everything; what the store lost meanwhile has one whole lease to come back. No command is done meanwhile."""
        self.catalogue.raise_floor(back.version)
        for entry in self.catalogue:
            entry.held = False
        for name in back.deregistered:
            self._apply(Forget(name))
        async for instance in paced(back.instances.values()):
            here = self.catalogue.get(instance.name)
            if here and instance.name in self.unwritten and here.instance.generation == instance.generation:
                here.held = True  # what was heard here meanwhile is newer
            else:
                self._apply(Learn(instance))
        self.catalogue.renew_unheld(self.clock.monotonic())


def _told(done: asyncio.Future[Decision]) -> None:
    """Nobody waits for what a store told."""
    if not done.cancelled() and (error := done.exception()) is not None:
        log.warning("store.event_failed", reason=str(error))


def _about(item: Item) -> str | None:
    """The name that it concerns; None for what concerns several."""
    match item:
        case Register(registration):
            return registration.name
        case Written(instance) | Learn(instance):
            return instance.name
        case _:
            return getattr(item, "name", None)


def _durable(decision: Decision) -> list[Upsert | Removed]:
    return [change for change in decision.changes if change.durable]
