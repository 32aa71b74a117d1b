"""The master's account of tokens: what its workers counted, kept until the registry has it, and shown by key (docs/usage.md)."""

import asyncio
import time
from collections.abc import Callable, Iterator

import structlog

from common import tokens
from common.discovery.registry_client import (
    RegistryClient,
    RegistryError,
    RegistryUnavailable,
    UnknownService,
)
from common.tokens import HOUR_S, FlatRow, Rows
from common.wire.usage import UsageBatch
from router.journal import Batch, Journal

log = structlog.get_logger(__name__)
SHIP_S = 2.0
ROWS_PER_S = 200
"""The registry's document of the hour is written anew for each batch: one of many rows is followed by a longer rest."""
AGAIN_S = 5.0
REFUSED_AGAIN_S = 30.0
NAME_MOST = 256
"""Of the letters of a name, as a registry takes them."""
SHOWN_MOST = 100
"""Rows of key and model that have series of their own in `/metrics`, six each."""
REMEDY = "give the router a register token for its name (docs/usage.md)"
REMEDIES = {
    RegistryUnavailable: "none: it is kept, and told when a registry answers",
    UnknownService: "upgrade the registry",
}


class Accounts:
    """What this router counted.

    Args:
        clock: Wall time in epoch seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.journal: Journal | None = None
        """Where it is until the registry has it; None where no registry is followed."""
        self._clock = clock
        self.by_key: Rows = {}
        """Since the router began, by key and model."""
        self._failing = False
        self._sealed: Batch | None = None
        """It was sent, perhaps, and not answered."""

    def heard(self, rows: list[FlatRow]) -> None:
        """A worker's word."""
        rows = [
            (key[:NAME_MOST], model[:NAME_MOST], replica[:NAME_MOST], counts) for key, model, replica, counts in rows
        ]
        tokens.add_all(self.by_key, [(key, model, "", counts) for key, model, _, counts in rows], SHOWN_MOST)
        if self.journal is not None:
            self.journal.add(self._hour(), rows)

    def _hour(self) -> int:
        return max(0, int(self._clock() // HOUR_S))

    async def ship(self, client: RegistryClient, router: str) -> None:
        """Tell the registry, for ever."""
        while True:
            rest_s = await self.ship_now(client, router)
            await asyncio.sleep(rest_s)

    async def ship_now(self, client: RegistryClient, router: str) -> float:
        """Tell the registry all that there is; returns how long to rest, in seconds."""
        journal = self.journal
        if journal is None:
            return REFUSED_AGAIN_S
        shipped = 0
        try:
            for batch in self._waiting(journal):
                for hour in list(batch.hours):
                    shipped += await self._ship_hour(client, router, journal, batch, hour)
                journal.remove(batch)
                if batch is self._sealed:
                    self._sealed = None
        except RegistryError as error:
            if not self._failing:
                log.warning("usage.not_told", reason=str(error), remedy=REMEDIES.get(type(error), REMEDY))
            self._failing = True
            return AGAIN_S if isinstance(error, RegistryUnavailable) else REFUSED_AGAIN_S
        self._failing = False
        return SHIP_S + shipped / ROWS_PER_S

    def _waiting(self, journal: Journal) -> Iterator[Batch]:
        """What earlier lives left, what was sent and not answered, and what was counted until now."""
        yield from journal.left()
        if self._sealed is not None:
            yield self._sealed
        self._sealed = journal.seal()
        if self._sealed is not None:
            yield self._sealed

    async def _ship_hour(self, client: RegistryClient, router: str, journal: Journal, batch: Batch, hour: int) -> int:
        """Tell of one hour of a batch; returns how many rows it has."""
        rows = tokens.flat(batch.hours[hour])
        sent = UsageBatch(writer=batch.writer, sequence=batch.sequence, hour=hour, rows=rows)
        answer = await client.tell_usage(router, sent)
        if answer.result == "wrong_hour":
            log.warning("usage.wrong_hour", hour=hour, registry_hour=answer.hour, remedy="set this machine's clock")
            journal.move(batch, hour, answer.hour)
        return len(rows)
