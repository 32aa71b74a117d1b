"""PURE. Pages of the ledger: of an hour and a router, and of a day, which takes in the pages of its hours; and what they add up to.

An hour's page knows which batches are in it, and a day's page which hours: whatever is told or done twice counts once.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
from msgspec import UNSET

from common import tokens
from common.tokens import FIELDS, HOUR_S, FlatRow, Rows
from common.wire.usage import UsageBatch, UsageCounts, UsageRow

HOURS, DAYS = "usage/h/", "usage/d/"
DAY_HOURS = 24
WRITERS_MOST = 1000
"""Lives of one router in one hour."""
ROWS_BYTES_MOST = 1 << 20
"""Of a page; etcd takes one and a half times as much."""
DIMENSIONS = ("key", "model", "replica")
STEPS = {"hour": len("2026-01-31T23"), "day": len("2026-01-31")}
"""By step how much of a page's stamp says which it belongs to."""


class HourPage(msgspec.Struct):
    """What one router told of one hour; `said` is each writer's last batch in it."""

    said: dict[str, int] = {}
    rows: list[FlatRow] = []


class DayPage(msgspec.Struct):
    """One day of all routers; `hours` are the pages that are in it."""

    hours: list[str] = []
    rows: list[FlatRow] = []


encode = msgspec.json.Encoder().encode
hour_page = msgspec.json.Decoder(HourPage).decode
day_page = msgspec.json.Decoder(DayPage).decode


def stamp(hour: int) -> str:
    """An hour (since the epoch) as keys have it: `2026-01-31T23`."""
    return datetime.fromtimestamp(hour * HOUR_S, UTC).strftime("%Y-%m-%dT%H")


def day_stamp(day: int) -> str:
    """A day (since the epoch): `2026-01-31`."""
    return stamp(day * DAY_HOURS)[: STEPS["day"]]


def hour_key(hour: int, router: str) -> str:
    """The page of one hour and router."""
    return f"{HOURS}{stamp(hour)}/{router}"


def with_batch(page: HourPage, batch: UsageBatch) -> HourPage | None:
    """The page with a batch more; None when it is in it already."""
    if page.said.get(batch.writer, 0) >= batch.sequence:
        return None
    rows: Rows = {}
    tokens.add_all(rows, page.rows)
    tokens.add_all(rows, batch.rows)
    said = {writer: last for writer, last in page.said.items() if writer != batch.writer}
    said = dict(list(said.items())[1 - WRITERS_MOST :])
    return HourPage({**said, batch.writer: batch.sequence}, _fitting(rows))


def folded(page: DayPage, hours: Mapping[str, bytes]) -> DayPage:
    """The day with those of `hours` (by key) that are not in it yet.

    Raises:
        msgspec.MsgspecError: One of them cannot be read.
    """
    rows: Rows = {}
    tokens.add_all(rows, page.rows)
    new = [key for key in hours if key not in page.hours]
    for key in new:
        tokens.add_all(rows, hour_page(hours[key]).rows)
    return DayPage([*page.hours, *new], _fitting(rows))


def _fitting(rows: Rows) -> list[FlatRow]:
    """As they are kept: where long names make them too many bytes, the half with the fewest tokens is counted as `OTHER`."""
    lines = tokens.flat(rows)
    while len(lines) > 1 and len(encode(lines)) > ROWS_BYTES_MOST:
        lines.sort(key=lambda line: line[3][1] + line[3][3], reverse=True)
        rows = {}
        tokens.add_all(rows, lines, len(lines) // 2)
        lines = tokens.flat(rows)
    return lines


@dataclass(frozen=True)
class Question:
    """What somebody wants to know: from hour `since` to before hour `until`, by some of `DIMENSIONS` and perhaps a step of time.

    Args:
        key: Only this key's.
    """

    since: int
    until: int
    by: Collection[str]
    step: str | None = None
    key: str | None = None


@dataclass
class Sum:
    """The answer as it grows, page by page."""

    question: Question
    rows: dict[tuple[str, str, str, str], tuple[int, ...]] = field(default_factory=dict)

    def add_day(self, day: int, hours: Mapping[str, bytes], whole: bytes | None) -> None:
        """Take in a day: the pages of its hours, and its own. A day that was folded counts whole if it begins in time.

        Raises:
            msgspec.MsgspecError: A page cannot be read.
        """
        first, end = stamp(self.question.since), stamp(self.question.until)
        page = day_page(whole) if whole is not None else DayPage()
        for key, value in hours.items():
            at = key.removeprefix(HOURS).partition("/")[0]
            if first <= at < end and key not in page.hours:
                self._add(at, hour_page(value).rows)
        if day_stamp(day) >= first[: STEPS["day"]]:
            self._add(day_stamp(day), page.rows)

    def _add(self, at: str, rows: list[FlatRow]) -> None:
        asked = self.question
        when = at[: STEPS[asked.step]] if asked.step is not None else ""
        by_key, by_model, by_replica = (name in asked.by for name in DIMENSIONS)
        for key, model, replica, counts in rows:
            if asked.key is not None and key != asked.key:
                continue
            name = (when, key if by_key else "", model if by_model else "", replica if by_replica else "")
            before = self.rows.get(name)
            self.rows[name] = counts if before is None else tuple(map(sum, zip(before, counts, strict=True)))

    def lines(self) -> list[UsageRow]:
        """In the order of time, then of most tokens."""
        return [self._line(name, counts) for name, counts in sorted(self.rows.items(), key=_rank)]

    def _line(self, name: tuple[str, str, str, str], counts: tuple[int, ...]) -> UsageRow:
        asked = self.question
        at, *names = name
        key, model, replica = (told if one in asked.by else UNSET for one, told in zip(DIMENSIONS, names, strict=True))
        requests, prompt, cached, completion, reasoning, estimated = counts
        return UsageRow(
            at=iso(at) if asked.step is not None else UNSET,
            key=key,
            model=model,
            replica=replica,
            requests=requests,
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=completion,
            reasoning_tokens=reasoning,
            estimated_tokens=estimated,
        )

    def total(self) -> UsageCounts:
        """All of it."""
        columns = [sum(column) for column in zip(*self.rows.values(), strict=True)]
        return msgspec.convert(dict(zip(FIELDS, columns, strict=False)), UsageCounts)


def iso(at: str) -> str:
    """A stamp as ISO 8601."""
    return f"{at}:00:00Z" if "T" in at else f"{at}T00:00:00Z"


def _rank(row: tuple[tuple[str, str, str, str], tuple[int, ...]]) -> tuple[object, ...]:
    name, counts = row
    return (name[0], -(counts[1] + counts[3]), name)
