"""Keeping a record alive in the registry: register, renew, register again when it was forgotten, deregister.

One loop per record. It survives every `RegistryError` and nothing else, reports a change at once when woken, and backs
off with jitter while the registry is away so that its return is no stampede (docs/faults.md C3).

A registry with many records asks for heartbeats further apart. The record is registered for a lease that is longer by as
much first; then they come less often. The other way round they come more often first.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from msgspec import UNSET
from msgspec.structs import replace

from common.discovery.pause import FIRST_S, LAST_S, Pause
from common.discovery.registry_client import (
    RegistrationRefused,
    RegistryClient,
    RegistryUnavailable,
    StaleIncarnation,
    UnknownService,
)
from common.wire.base import Message
from common.wire.record import HeartbeatAnswer, Registration

log = structlog.get_logger(__name__)
RETRY_FIRST_S, RETRY_LAST_S = FIRST_S, LAST_S
JITTER = 0.1
"""Of the time between heartbeats, so that those of a fleet spread."""
AWAY_SHARE = 0.5
"""Of the time between heartbeats, which is the longest pause while registries do not answer: those of a fleet that asks every ten
seconds for what it has once in minutes keep registries that have too much to do from ever having less."""
CHANGES_SHARE = 0.1
"""Of the heartbeats that are answered with another interval, which are followed by a registration for it: each is a write of the registry's store,
and a whole fleet is told at once. So these writes are a tenth of the heartbeats at most, of which the registry bounds how many there are."""


@dataclass(slots=True)
class Lease:
    """One record that this process keeps registered.

    Args:
        client: The registry.
        registration: Makes the body of `POST /services`; `None` means: not to be registered now.
        report: Makes the body of a heartbeat.
        interval_s: Between heartbeats, ± 10 %; more where the registry wants fewer and the record has a `ttl_s`.
        heard: Takes the registry's answers to heartbeats.
        reports_at_once: The first heartbeat comes right after a registration, which says less.
        refused: Called when the registry refuses the record for another reason than before.
    """

    client: RegistryClient
    registration: Callable[[], Registration | None]
    report: Callable[[], Message]
    interval_s: float
    heard: Callable[[HeartbeatAnswer], None] = lambda _answer: None
    refused: Callable[[], None] = lambda: None
    reports_at_once: bool = False
    registered_as: str | None = None
    last_error: str | None = None
    refusal: str | None = None
    """Why the registry will not have the record; None while it has not said so."""
    _registered: Registration | None = None
    _instance_id: str | None = None
    _has_left: bool = False
    _lasts_for_s: float = 0.0
    """The interval that the registered lease was made for, where the registry wanted a longer one than ours."""
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _rng: random.Random = field(default_factory=random.Random)

    def wake(self) -> None:
        """Something changed: tell the registry now."""
        self._wake.set()

    async def keep(self) -> None:
        """Run until cancelled; the record then stays until `leave()` or its lease's end."""
        retry = Pause(RETRY_FIRST_S, RETRY_LAST_S, rng=self._rng)
        is_forgotten = False
        while True:
            self._wake.clear()
            is_new = self.registered_as is None and not is_forgotten
            try:
                await self._step()
                is_forgotten = False
                pause_s = self.interval_s
                if not is_new:  # else a heartbeat is due soon, which says more; of a fleet that was forgotten that would be too many
                    pause_s = max(pause_s, min(self._lasts_for_s, self.client.least_interval_s))
                pause_s *= self._rng.uniform(1 - JITTER, 1 + JITTER)
                retry.reached()
                self.last_error = None
                self._note_refusal(None)
            except UnknownService:
                self.registered_as = None
                is_forgotten = True
                continue
            except (StaleIncarnation, RegistrationRefused) as error:
                self._complain("lease.refused", error)
                self._note_refusal(str(error))
                self.registered_as = None
                pause_s = RETRY_LAST_S
            except RegistryUnavailable as error:
                self._complain("lease.registry_unavailable", error)
                pause_s = retry.next_s(last_s=AWAY_SHARE * self.client.least_interval_s)
            await self._sleep(pause_s)

    async def leave(self) -> None:
        """Deregister, if registered, for good; an unreachable registry is left to the lease's end."""
        self._has_left = True
        self.wake()  # a registration may be under way: it is taken back
        await self._deregister()

    async def _deregister(self) -> None:
        name, self.registered_as = self.registered_as, None
        if name is None:
            return
        try:
            await self.client.deregister(name, instance_id=self._instance_id)
        except (RegistryUnavailable, RegistrationRefused) as error:
            log.warning("lease.leave_failed", name=name, reason=str(error))

    async def _step(self) -> None:
        registration = None if self._has_left else self.registration()
        if registration is None:
            await self._deregister()
        elif self.registered_as is None:
            known_s = self.client.least_interval_s
            await self._register(registration, known_s)
            if self.client.least_interval_s > known_s:  # told only now, as to one that is new, and so to few at a time
                await self._register(registration, self.client.least_interval_s)
            if self.reports_at_once:
                self.wake()
            log.info("lease.registered", name=self.registered_as, registry=self.client.url)
        else:
            await self._register(registration, self._lasts_for_s)
            self.heard(await self.client.renew(self.registered_as, self.report()))
            if not self._has_left and self._rng.random() < CHANGES_SHARE:
                await self._register(registration, self.client.least_interval_s)

    async def _register(self, registration: Registration, least_s: float) -> None:
        """Register with a lease that holds when heartbeats are so far apart, unless the registry has exactly that."""
        if registration.ttl_s is UNSET:
            least_s = 0.0
        elif least_s > self.interval_s:
            registration = replace(registration, ttl_s=registration.ttl_s + (1 + JITTER) * least_s)
        told = _lasting(registration)
        if self.registered_as is None or told != self._registered:  # such as a model more: the record must say so
            await self.client.register(registration)
            self.registered_as = registration.name
            self._instance_id = None if registration.instance_id is UNSET else registration.instance_id
            self._registered = told
        self._lasts_for_s = least_s

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # before Python 3.12, wait_for loses a cancel that meets the wake
                await self._wake.wait()

    def _note_refusal(self, reason: str | None) -> None:
        if reason != self.refusal:
            self.refusal = reason
            self.refused()

    def _complain(self, event: str, error: Exception) -> None:
        """Log a fault once, not at every try."""
        text = str(error)
        if text != self.last_error:
            log.warning(event, name=self.registered_as, reason=text)
        self.last_error = text


def _lasting(registration: Registration) -> Registration:
    """What only a registration tells: a status comes with every heartbeat, and a time is none to register for."""
    return replace(registration, status="", timestamp=None)
