"""Lends the keys' budgets to the workers of all routers; at the registry that leads only (docs/adr/0016).

What was lent is in memory. A registry that begins to lead listens for a moment, in which routers say what they hold and
used, and lends then. What days and months have used is written each second; less than that is lost with the process.
"""

import asyncio
from collections.abc import Callable, Iterator

import msgspec
import structlog

from common.clock import Clock
from common.leases import Lender, Now, Period, limits_of
from common.wire.leases import LeaseAnswer, LeaseCall, LeaseRows
from registry.core.documents import Documents, Fence
from registry.core.store import DocumentConflict, StoreError
from registry.keys.book import KeyBook

log = structlog.get_logger(__name__)
SPENT = "spent"
WRITE_S = 1.0
LOOK_S = 0.1
"""Between two looks whether this registry leads by now."""
GATHER_S = 1.5
"""Routers call each second while anything of theirs counts."""
SILENCE_S = 10.0
"""Whoever says nothing for so long holds nothing any more."""
_Spent = dict[str, dict[str, dict[str, tuple[str, int]]]]
"""By key, unit and window: which period, and how much."""
_decode = msgspec.json.Decoder(_Spent).decode


class NotLending(Exception):
    """Another registry leads, or this one still listens; the text says which."""


class FleetLender:
    """What is left of every key's limits.

    Args:
        documents: The store's.
        book: The keys.
        clock: Both kinds of time.
        fence: The leader's, while this registry leads.
    """

    def __init__(self, documents: Documents, book: KeyBook, clock: Clock, fence: Callable[[], Fence | None]) -> None:
        self._documents = documents
        self._book = book
        self._clock = clock
        self._fence = fence
        self._led: Fence | None = None
        self._forget_all()

    def _forget_all(self) -> None:
        self._lender = Lender()
        self._keys = ""
        self._sessions: dict[str, dict[str, float]] = {}
        """When each holder was heard last, by the session of its router."""
        self._lends_at = float("inf")
        self._version = 0
        self._written: _Spent = {}

    def now(self) -> Now:
        """Now."""
        return Now(self._clock.monotonic(), self._clock.utcnow())

    async def run(self) -> None:
        """Begin to lead, write what periods used, let go of who is gone; for ever."""
        fails = False
        while True:
            try:
                await self._round()
                fails = False
            except StoreError as error:
                if not fails:
                    log.warning("leases.not_written", reason=str(error))
                fails = True
            await asyncio.sleep(LOOK_S if self._led is None else WRITE_S)

    async def _round(self) -> None:
        fence = self._fence()
        if fence != self._led or fence is None:
            self._forget_all()
            self._led = None
            if fence is None or not self._book.known:
                return
            document = (await self._documents.read(SPENT)).get(SPENT)
            self._take_keys()
            if document is not None:
                self._restore(document.value, document.version)
            self._led = fence
            self._lends_at = self._clock.monotonic() + GATHER_S
        self._drop_silent()
        await self._write(fence)

    def _take_keys(self) -> None:
        if self._keys != self._book.all.version:
            self._keys = self._book.all.version
            self._lender.limit({key.name: limits_of(key) for key in self._book.all.keys})

    def knows(self, call: LeaseCall) -> bool:
        """Whether all keys that it is about are known, and have limits."""
        return all(rows.keys() <= self._lender.meters.keys() for rows in call.holders.values())

    def answer(self, call: LeaseCall) -> LeaseAnswer:
        """Take what a router's workers have, and lend them more.

        Raises:
            NotLending: Ask another registry, or again.
        """
        if self._led is None or self._fence() != self._led:
            raise NotLending("another registry leads: give routers the addresses of all of them")
        self._take_keys()
        now = self.now()
        is_new = call.session not in self._sessions
        if is_new:
            self._lender.add_recent(call.recent, now)
        heard = self._sessions.setdefault(call.session, {})
        heard[""] = now.monotonic
        lends = now.monotonic >= self._lends_at
        named = {
            f"{call.session}/{holder}": rows if lends else _only_told(rows) for holder, rows in call.holders.items()
        }
        heard.update((holder, now.monotonic) for holder in named)
        granted = self._lender.report(named, now, is_new=is_new)
        if not lends:
            raise NotLending("this registry has just begun to lead, and hears first what is held")
        holders = {holder.partition("/")[2]: grants for holder, grants in granted.items()}
        return LeaseAnswer(routers=len(self._sessions), holders=holders)

    def _drop_silent(self) -> None:
        now = self.now()
        for session, heard in list(self._sessions.items()):
            for holder, at in list(heard.items()):
                if now.monotonic - at > SILENCE_S:
                    del heard[holder]
                    self._lender.forget(holder, now)
            if not heard:
                del self._sessions[session]

    # Days and months.

    def _periods(self) -> Iterator[tuple[str, str, str, Period]]:
        for key, meters in self._lender.meters.items():
            for unit, meter in meters.items():
                for name, window in meter.windows.items():
                    if isinstance(window, Period):
                        yield key, unit, name, window

    def _restore(self, value: bytes, version: int) -> None:
        self._version = version
        try:
            spent = _decode(value)
        except msgspec.MsgspecError as error:
            log.error("leases.unreadable", reason=str(error))
            return
        for key, unit, name, period in self._periods():
            period.name, period.total = spent.get(key, {}).get(unit, {}).get(name, ("", 0))

    async def _write(self, fence: Fence) -> None:
        spent: _Spent = {}
        for key, unit, name, period in self._periods():
            if period.total:
                spent.setdefault(key, {}).setdefault(unit, {})[name] = (period.name, period.total)
        if spent == self._written:
            return
        try:
            self._version = await self._documents.write(
                SPENT, msgspec.json.encode(spent), version=self._version, fence=fence
            )
        except DocumentConflict:  # a write whose answer was lost; nobody else leads
            self._version = (await self._documents.read(SPENT))[SPENT].version
            return
        self._written = spent


def _only_told(rows: LeaseRows) -> LeaseRows:
    return {
        key: {unit: msgspec.structs.replace(row, need=0, want=0) for unit, row in units.items()}
        for key, units in rows.items()
    }
