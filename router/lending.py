"""The master's part in keys' limits: it asks the registry for all workers at once, and lends itself where nobody else does.

Keys of the router's file are lent by itself, for this router. Those of the registry are the fleet's. While no registry
answers, this router lends its share of them: of what was left at the last answer at once, and of the limit as the minutes pass
(docs/adr/0016).
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import msgspec
import structlog

from common.discovery.registry_client import RegistryClient, RegistryError
from common.leases import MINUTE_S, Lender, Now, limits_of
from common.wire.leases import LeaseAnswer, LeaseCall, LeaseGrants, LeaseRow, LeaseRows
from router import feed
from router.keys import Key

log = structlog.get_logger(__name__)
BEAT_S = 1.0
KEPT_S = 5.0
"""A router calls so often, though it has nothing to say: it is one of those that share."""
SOONEST_S = 0.01
"""Between two calls."""
FIRST_ANSWER_S = 5.0
"""So long a router that never had an answer waits for one: it does not know how many others there are."""
ASK_AGAIN_S = 0.2
Tell = Callable[[feed.Grants], None]


def _now() -> Now:
    return Now(time.monotonic(), datetime.now(UTC))


class Lending:
    """What this router's workers hold of keys' limits.

    Args:
        fails_closed: While no registry answers, grant nothing of the fleet's limits.
        now: Both kinds of time.
    """

    def __init__(self, *, fails_closed: bool, now: Callable[[], Now] = _now) -> None:
        self._fails_closed = fails_closed
        self._now = now
        self._session = secrets.token_hex(8)
        self._own = Lender()
        self._keys: tuple[Key, ...] = ()
        self._fleets: frozenset[str] = frozenset()
        """Names of the keys that the registry keeps."""
        self._routers = 0
        """That share the limits, as the registry counts them; 0: it never said."""
        self._unanswered_at = 0.0
        """When it did not answer for the first time, while it never has."""
        self._rows: dict[str, LeaseRows] = {}
        """Of the fleet's keys, by worker: what each has now, where the registry is to hear of it."""
        self._told: dict[str, dict[tuple[str, str], int]] = {}
        """By worker, key and unit: what the registry knows to be used."""
        self._left: dict[tuple[str, str], int] = {}
        """By key and unit, at the registry's last answer."""
        self._asking: dict[str, tuple[LeaseRows, LeaseGrants, Tell]] = {}
        """Workers that wait for the registry's answer: what they said, and what they have been granted already."""
        self._lately: dict[str, float] = {}
        """When each of the fleet's keys was asked for last."""
        self._gone: set[str] = set()
        self._registry: tuple[RegistryClient, str] | None = None
        """And what this router is called there."""
        self._wanted = asyncio.Event()
        self._called_at = -KEPT_S
        self.lost = False
        """No registry answers: this router goes on alone."""

    def set_keys(self, keys: tuple[Key, ...], fleets: Iterable[str]) -> None:
        """Have the limits of `keys`, of which those named in `fleets` are the fleet's."""
        self._keys, self._fleets = keys, frozenset(fleets)
        self._limit()
        self._left = {place: left for place, left in self._left.items() if place[0] in self._fleets}
        for rows in self._rows.values():
            for name in rows.keys() - self._fleets:
                del rows[name]

    def _limit(self) -> None:
        shares = ((key, max(1, self._routers) if key.name in self._fleets else 1) for key in self._keys)
        limits = {key.name: limits_of(key, share) for key, share in shares}
        self._own.limit({name: units for name, units in limits.items() if units})

    # Workers.

    def heard(self, worker: str, rows: LeaseRows, tell: Tell) -> None:
        """A worker asks; it is told once."""
        own = {name: units for name, units in rows.items() if name not in self._fleets}
        fleets = {name: units for name, units in rows.items() if name in self._fleets}
        granted = self._own.report({worker: own}, self._now())[worker]
        if not fleets:
            tell(feed.Grants(granted))
            return
        told = self._told.setdefault(worker, {})
        self._lately.update(dict.fromkeys(fleets, self._now().monotonic))
        for name, units in fleets.items():
            said = {unit: msgspec.structs.replace(row, told=told.get((name, unit), 0)) for unit, row in units.items()}
            self._rows.setdefault(worker, {}).setdefault(name, {}).update(said)
        self._asking[worker] = (fleets, granted, tell)
        if self.lost:
            self._answer_alone()
        else:
            self._own.report({worker: _told_only(fleets)}, self._now())  # it may have to go on from here
        self._wanted.set()

    def _answer_alone(self) -> None:
        asking, self._asking = self._asking, {}
        for worker, (rows, granted, tell) in asking.items():
            if self._fails_closed:
                tell(feed.Grants(granted, closed=True))
                continue
            more = self._own.report({worker: rows}, self._now())[worker]
            self._hold(worker, more)
            tell(feed.Grants({**granted, **more}))

    def _hold(self, worker: str, grants: LeaseGrants) -> None:
        """A worker is told of `grants`: it needs nothing more, and holds them."""
        rows = self._rows.get(worker, {})
        for name, units in grants.items():
            for unit, grant in units.items():
                row = rows.get(name, {}).get(unit)
                if row is not None:
                    rows[name][unit] = msgspec.structs.replace(row, held=row.held + grant.granted, need=0, want=0)

    def gone(self, worker: str) -> None:
        """A worker has ended. What it held without having given it back may have been used."""
        self._own.forget(worker, self._now())
        self._asking.pop(worker, None)
        if self._registry is not None:
            self._gone.add(worker)
        if worker in self._rows:
            self._rows[worker] = {
                name: {unit: LeaseRow(used=row.used + row.held, told=row.told) for unit, row in units.items()}
                for name, units in self._rows[worker].items()
            }
            self._wanted.set()

    # The registry.

    async def follow(self, client: RegistryClient, name: str) -> None:
        """Ask the registry whenever a worker asks, and each second while anything of this router's counts; for ever."""
        self._registry = (client, name)
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), BEAT_S)
            self._wanted.clear()
            await self.call()
            await asyncio.sleep(BEAT_S if self.lost else ASK_AGAIN_S if self._unanswered_at else SOONEST_S)

    async def call(self) -> None:
        """Ask once, if there is anything to say: in the end that nothing is held any more."""
        if self._registry is None:
            return
        client, name = self._registry
        now = self._now()
        self._lately = {key: at for key, at in self._lately.items() if now.monotonic < at + 2 * MINUTE_S}
        recent = self._own.recent(self._lately.keys() & self._fleets, now)
        asked, gone = set(self._asking), set(self._gone)
        if not (self._rows or recent or asked) and now.monotonic < self._called_at + KEPT_S:
            self._forget(gone)
            return
        self._called_at = now.monotonic
        holders = {worker: {key: dict(units) for key, units in rows.items()} for worker, rows in self._rows.items()}
        try:
            answer = await client.lease(name, LeaseCall(session=self._session, holders=holders, recent=recent))
        except RegistryError as error:
            self._lose(str(error))
        else:
            self._take(holders, asked, answer)
            self._forget(gone)

    def _forget(self, gone: set[str]) -> None:
        """The registry has heard of their ends."""
        for worker in gone:
            self._rows.pop(worker, None)
            self._told.pop(worker, None)
        self._gone -= gone

    def _lose(self, reason: str) -> None:
        now = self._now()
        if not self._routers:
            self._unanswered_at = self._unanswered_at or now.monotonic
            if now.monotonic < self._unanswered_at + FIRST_ANSWER_S:
                self._wanted.set()
                return
        if not self.lost:
            log.warning("lending.alone", reason=reason, routers=self._routers, closed=self._fails_closed)
            self.lost = True
            for (key, unit), left in self._left.items():
                meter = self._own.meters.get(key, {}).get(unit)
                if meter is not None:
                    meter.leave(left // max(1, self._routers), now)
        self._answer_alone()

    def _take(self, holders: dict[str, LeaseRows], asked: set[str], answer: LeaseAnswer) -> None:
        if self.lost:
            log.info("lending.shared", routers=answer.routers)
            self.lost = False
        self._unanswered_at = 0.0
        if max(1, answer.routers) != self._routers:
            self._routers = max(1, answer.routers)
            self._limit()
        for worker, rows in holders.items():
            self._note_told(worker, rows)
            for key, units in answer.holders.get(worker, {}).items():
                self._left.update(((key, unit), grant.left) for unit, grant in units.items())
        for worker in asked & self._asking.keys():
            said, own, tell = self._asking.pop(worker)
            given = {key: units for key, units in answer.holders.get(worker, {}).items() if key in said}
            self._hold(worker, given)
            tell(feed.Grants({**own, **given}))

    def _note_told(self, worker: str, told: LeaseRows) -> None:
        """The registry knows of what was said; what says nothing more needs not be said again."""
        rows, known = self._rows.get(worker, {}), self._told.setdefault(worker, {})
        for name, units in told.items():
            for unit, said in units.items():
                known[name, unit] = said.used
                row = rows.get(name, {}).get(unit)
                if row is None:
                    continue
                if row.held or said.held or row.want or row.used != said.used:
                    rows[name][unit] = msgspec.structs.replace(row, told=said.used)
                else:
                    del rows[name][unit]
        self._rows[worker] = {name: units for name, units in rows.items() if units}
        if not self._rows[worker]:
            del self._rows[worker]


def _told_only(rows: LeaseRows) -> LeaseRows:
    return {
        name: {unit: msgspec.structs.replace(row, need=0, want=0) for unit, row in units.items()}
        for name, units in rows.items()
    }
