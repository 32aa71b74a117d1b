"""The ledger in the store: takes routers' batches, folds old hours into days, and answers what was used (docs/usage.md)."""

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from common.clock import Clock
from common.tokens import HOUR_S
from common.wire.usage import UsageBatch, UsageTaken
from registry.core.documents import Document, Documents, Fence
from registry.core.store import DocumentConflict, StoreError, StoreFull, StoreUnavailable
from registry.usage import pages
from registry.usage.pages import DAY_HOURS, DAYS, HOURS, DayPage, HourPage, Question, Sum

log = structlog.get_logger(__name__)
TRIES = 8
ROUTERS_MOST = 256
"""In one hour."""
FOLD_S = 3600.0
FIRST_FOLD_S = 60.0
FORGOTTEN_DAYS = 400
"""So many days beyond those that are kept are looked for: as long as no registry ran."""
QUESTIONS_AT_ONCE = 2
ROWS_SHOWN_MOST = 50_000


class TooManyRows(Exception):
    """An answer would be too long."""


class UsageBook:
    """Everybody's tokens.

    Args:
        documents: The store's.
        clock: Wall time.
        fence: Proof that this registry leads; None while another does.
        hours_days: Days for which hours are kept; then they are folded.
        days: Days that are kept.
    """

    def __init__(
        self,
        documents: Documents,
        clock: Clock,
        fence: Callable[[], Fence | None],
        *,
        hours_days: int,
        days: int,
    ) -> None:
        self._documents = documents
        self._clock = clock
        self._fence = fence
        self.hours_days, self.days = hours_days, days
        self._forgotten = self._folded = 0
        """Up to which day that is done; this registry looks at all of them once."""
        self._asking = asyncio.Semaphore(QUESTIONS_AT_ONCE)

    @property
    def hour(self) -> int:
        """The present one, since the epoch."""
        return int(self._clock.utcnow().timestamp() // HOUR_S)

    async def take(self, router: str, batch: UsageBatch) -> UsageTaken:
        """Count a batch, once; one of more than an hour from now, or of hours that are folded soon, is not counted.

        Raises:
            StoreUnavailable: Nothing is known of it: send it again.
            StoreFull: There is no room.
        """
        now = self.hour
        if not now - (min(self.hours_days, self.days) - 1) * DAY_HOURS < batch.hour <= now + 1:
            return UsageTaken(result="wrong_hour", hour=now)
        key = pages.hour_key(batch.hour, router)
        for _ in range(TRIES):
            document = (await self._documents.read(key)).get(key)
            if document is None and len(await self._documents.read(key.removesuffix(router))) >= ROUTERS_MOST:
                raise StoreFull(f"{ROUTERS_MOST} routers have told of this hour, and no more may")
            page = pages.with_batch(self._read(key, document), batch)
            try:
                if page is not None:
                    await self._documents.write(key, pages.encode(page), version=document.version if document else 0)
            except DocumentConflict:
                continue
            return UsageTaken(result="counted", hour=now)
        raise StoreUnavailable(f"{key!r} is changed all the time; try again")

    def _read(self, key: str, document: Document | None) -> HourPage:
        if document is None:
            return HourPage()
        try:
            return pages.hour_page(document.value)
        except msgspec.MsgspecError as error:
            log.error("usage.page_unreadable", key=key, reason=str(error), remedy="it begins anew")
            return HourPage()

    async def answer(self, question: Question) -> Sum:
        """What was used.

        Raises:
            StoreUnavailable: The store does not answer.
            TooManyRows: There are more than `ROWS_SHOWN_MOST` rows.
        """
        answer = Sum(question)
        async with self._asking:
            for day in range(question.since // DAY_HOURS, -(-question.until // DAY_HOURS)):
                stamp = pages.day_stamp(day)
                # In this order: an hour that is folded in between is in both, and counted once.
                hours = {key: one.value for key, one in (await self._documents.read(f"{HOURS}{stamp}")).items()}
                whole = (await self._documents.read(f"{DAYS}{stamp}")).get(f"{DAYS}{stamp}")
                if not hours and whole is None:
                    continue
                try:
                    await asyncio.to_thread(answer.add_day, day, hours, whole.value if whole is not None else None)
                except msgspec.MsgspecError as error:
                    log.error("usage.page_unreadable", key=stamp, reason=str(error), remedy="it is passed over")
                if len(answer.rows) > ROWS_SHOWN_MOST:
                    raise TooManyRows
        return answer

    async def run(self) -> None:
        """Fold, for ever."""
        await asyncio.sleep(FIRST_FOLD_S)
        while True:
            try:
                await self.fold()
            except StoreError as error:
                log.warning("usage.not_folded", reason=str(error))
            await asyncio.sleep(FOLD_S)

    async def fold(self) -> None:
        """Make days of the hours that are too old, and forget the days that are; for the registry that leads only.

        Raises:
            StoreError: It could not be done; nothing is lost, and nothing counts twice.
        """
        fence, today = self._fence(), self.hour // DAY_HOURS
        if fence is None:
            return
        oldest, young = today - self.days, today - self.hours_days
        for day in range(max(0, oldest - FORGOTTEN_DAYS, self._forgotten), oldest):
            await self._fold_day(day, fence, keep=False)
        for day in range(max(0, oldest, self._folded), young):
            try:
                await self._fold_day(day, fence, keep=True)
            except msgspec.MsgspecError as error:
                log.error("usage.page_unreadable", key=pages.day_stamp(day), reason=str(error), remedy="its hours stay")
        self._forgotten, self._folded = oldest, young

    async def _fold_day(self, day: int, fence: Fence, *, keep: bool) -> None:
        key = f"{DAYS}{pages.day_stamp(day)}"
        hours = await self._documents.read(f"{HOURS}{pages.day_stamp(day)}")
        document = (await self._documents.read(key)).get(key)
        version = document.version if document is not None else 0
        if not keep and document is not None:
            await self._documents.write(key, None, version=version, fence=fence)
        elif keep and hours:
            before = pages.day_page(document.value) if document is not None else DayPage()
            page = pages.folded(before, {name: one.value for name, one in hours.items()})
            await self._documents.write(key, pages.encode(page), version=version, fence=fence)
        for name, hour in hours.items():
            await self._documents.write(name, None, version=hour.version, fence=fence)
