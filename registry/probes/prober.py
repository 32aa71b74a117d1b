"""Asks every instance whether it is well, a few at a time, and gives the writer the verdicts."""

import asyncio
import random
from collections.abc import Iterable, Sequence

import aiohttp
import structlog

from common.clock import Clock
from common.discovery.plan import Plan
from common.tasks import TaskScope
from common.wire.words import HealthStatus
from registry.core.catalogue import Revised
from registry.core.model import CommandRefused, Instance, SetHealth, Upsert
from registry.core.writer import Writer
from registry.probes.probe import ask
from registry.probes.schedule import FIRST_WITHIN_S, Schedule, is_in_doubt, next_streak, probed_at, verdict

log = structlog.get_logger(__name__)
TICK_S = 0.1
SHARED_FOR = 0.8
"""Of the time between two probes of a record: a good answer in it is that of others at the same address."""
NEW_SHARED_S = 5.0
"""The same for a record that was never asked: a server's, whose babysitter's came a moment before."""
NEIGHBOURS_S = 15.0
"""How long a host is in doubt, once what stood there does not answer: time for two looks at each of its records."""


class HealthProber:
    """Probes what the catalogue holds.

    Args:
        writer: Takes the verdicts.
        session: Asks.
        clock: Monotonic time.
        interval_s: Between two probes of one record.
        concurrency: Most probes at once.
        rng: Spreads the probes.
    """

    def __init__(
        self,
        writer: Writer,
        session: aiohttp.ClientSession,
        clock: Clock,
        *,
        interval_s: float,
        timeout_s: float,
        concurrency: int,
        rng: random.Random | None = None,
    ) -> None:
        self._writer = writer
        self._session = session
        self._timeout_s = timeout_s
        self._clock = clock
        self._interval_s = interval_s
        self._concurrency = concurrency
        self._schedule = Schedule(interval_s, (rng or random.Random()).random)  # noqa: S311 - spreads load, no secret
        self._streaks: dict[str, tuple[int, int]] = {}
        self._well_at: dict[Plan, float] = {}
        """When each address last answered well."""
        self._doubted: dict[str, float] = {}
        """Hosts where something stopped answering, and until when that makes its neighbours worth a look."""
        self._running = 0

    def retime(self, *, interval_s: float, timeout_s: float, concurrency: int) -> None:
        """Probe at another pace from the next probe of each record on."""
        self._interval_s = self._schedule.interval_s = interval_s
        self._timeout_s = timeout_s
        self._concurrency = concurrency

    def begin(self, instances: Iterable[Instance]) -> None:
        """Plan the first probes of what was loaded, spread over one interval."""
        for instance in instances:
            self._streaks[instance.name] = (instance.generation, 0)
            self._schedule.add(instance.name, self._clock.monotonic(), within_s=self._interval_s)

    def notice(self, revised: Sequence[Revised]) -> None:
        """A listener of the writer: new owners of names are probed soon, gone ones no more."""
        for item in revised:
            change = item.change
            if not isinstance(change, Upsert):
                self._schedule.drop(change.name)
                self._streaks.pop(change.name, None)
            elif self._streaks.get(change.name, (0, 0))[0] != change.instance.generation:
                self._streaks[change.name] = (change.instance.generation, 0)
                self._schedule.add(change.name, self._clock.monotonic(), within_s=min(FIRST_WITHIN_S, self._interval_s))

    async def run(self) -> None:
        """Probe for ever."""
        async with TaskScope("probes", close_timeout_s=1.0) as scope:
            while True:
                for name in self._schedule.take(self._clock.monotonic(), self._concurrency - self._running):
                    self._running += 1
                    task = scope.spawn(f"probe.{name}", self._probe_and_tell(name))
                    task.add_done_callback(self._ended)
                await asyncio.sleep(TICK_S)

    async def probe(self, instance: Instance) -> bool:
        """Ask once; true for a 200 within the timeout."""
        plan = probed_at(instance)
        if not await ask(self._session, plan, "/health", timeout_s=self._timeout_s):
            self._well_at.pop(plan, None)
            return False
        if len(self._well_at) > 2 * len(self._schedule):
            self._well_at.clear()  # of records that are gone, or went elsewhere
        self._well_at[plan] = self._clock.monotonic()
        return True

    def _was_well(self, instance: Instance) -> bool:
        """Whether for another record at its address, such as its babysitter's, a good answer came a short while ago."""
        if instance.health is HealthStatus.UNHEALTHY:
            return False
        now = self._clock.monotonic()
        if self._doubted.get(instance.registration.host, now) > now:
            return False
        at = self._well_at.get(probed_at(instance))
        lasts_s = SHARED_FOR * self._schedule.pause_s if instance.health is HealthStatus.HEALTHY else NEW_SHARED_S
        return at is not None and now - at < lasts_s

    def _ended(self, _task: asyncio.Task[None]) -> None:
        self._running -= 1

    async def _probe_and_tell(self, name: str) -> None:
        entry = self._writer.catalogue.get(name)
        if entry is None:
            return
        instance = entry.instance
        good = self._was_well(instance) or await self.probe(instance)
        generation, streak = self._streaks.get(name, (0, 0))
        if not good and streak >= 0 and instance.health is HealthStatus.HEALTHY:
            self._doubt_neighbours(instance.registration.host)
        streak = next_streak(streak if generation == instance.generation else 0, good=good)
        self._streaks[name] = (instance.generation, streak)
        health = verdict(instance.health, streak)
        if is_in_doubt(health, streak):
            self._schedule.hasten(name, self._clock.monotonic())
        if health is not instance.health:
            log.info("probe.verdict", name=name, health=health.value)
            await self._tell(SetHealth(name, instance.generation, health))

    def _doubt_neighbours(self, host: str) -> None:
        """A node that died has other records, too: they are asked now, where their turn would come in minutes."""
        now = self._clock.monotonic()
        self._doubted = {name: until for name, until in self._doubted.items() if until > now}
        if host not in self._doubted:
            self._doubted[host] = now + NEIGHBOURS_S
            for entry in self._writer.catalogue:
                if entry.instance.registration.host == host:
                    self._schedule.hasten(entry.instance.name, now)

    async def ask_now(self, instance: Instance) -> HealthStatus:
        """Probe at once and let this one answer decide."""
        health = HealthStatus.HEALTHY if await self.probe(instance) else HealthStatus.UNHEALTHY
        await self._tell(SetHealth(instance.name, instance.generation, health))
        return health

    async def _tell(self, command: SetHealth) -> None:
        try:
            await self._writer.submit(command)
        except CommandRefused as error:
            log.debug("probe.too_late", name=command.name, reason=str(error))
