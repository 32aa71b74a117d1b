"""The ledger at the registry: each batch once, hours into days once, and what it answers."""

import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.tokens import FIELDS, OTHER, ROWS_MOST
from common.wire.usage import UsageBatch, UsageLine, UsageTaken
from registry.core.documents import Document, Fence
from registry.core.store import DocumentConflict, Store, StoreFull, StoreUnavailable
from registry.store.memory import MemoryStore
from registry.usage import pages
from registry.usage.book import ROUTERS_MOST, UsageBook
from registry.usage.pages import DayPage, HourPage, Question, Sum
from tests.registry.conftest import Client, FakeClock, StartClient, parts

NOW = 490_920  # 2026-01-02T00 UTC, in hours
DAY = 24
WRITER = "0123456789abcdef"
ROW: UsageLine = ("team", "m", "r", (1, 100, 64, 7, 2, 0))


class Hours(FakeClock):
    """A clock that is set in hours."""

    def __init__(self) -> None:
        super().__init__()
        self.hour = NOW

    def utcnow(self) -> datetime:
        return datetime.fromtimestamp(self.hour * 3600, UTC)


def batch(sequence: int = 1, hour: int = NOW, *rows: UsageLine, writer: str = WRITER) -> UsageBatch:
    return UsageBatch(writer=writer, sequence=sequence, hour=hour, rows=list(rows or (ROW,)))


def book_of(store: Store, clock: Hours, fence: Fence | None = None) -> UsageBook:
    return UsageBook(store.documents, clock, lambda: fence, hours_days=35, days=60)


def _given(fence: Fence | None) -> Fence | None:
    return fence


async def total(book: UsageBook, **more: Any) -> list[int]:
    """Requests and prompt tokens."""
    found = (await book.answer(Question(NOW - 3 * DAY, NOW + DAY, (), **more))).total()
    return [found.requests, found.prompt_tokens]


async def test_a_batch_counts_once_at_whichever_registry_it_is_told(store: Store) -> None:
    clock = Hours()
    one, other = book_of(store, clock), book_of(store, clock)
    for book in (one, other, one):
        assert await book.take("router-1", batch()) == UsageTaken(result="counted", hour=NOW)
    assert await total(one) == [1, 100]
    await other.take("router-1", batch(2))
    await one.take("router-1", batch(1))
    await one.take("router-1", batch(1, writer="f" * 16))
    await one.take("router-2", batch(1))
    await one.take("router-1", batch(2, NOW - 1))
    assert await total(other) == [5, 500]


async def test_hours_become_days_once_whenever_the_leader_dies_C22(store: Store) -> None:
    """Each write of the fold may be its last."""
    clock = Hours()
    fence = await store.documents.lead()
    book = book_of(store, clock, fence)
    for hour in range(NOW - 2 * DAY, NOW):
        await book.take("router-1", batch(1, hour))
    told = await total(book)
    assert told == [48, 4800]
    clock.hour += 36 * DAY
    for writes in (0, 1, 5, 20, 100):
        fence = await store.documents.lead()  # over etcd it must be kept
        dying = UsageBook(Dying(store.documents, writes), clock, partial(_given, fence), hours_days=35, days=60)
        if writes < 100:
            with pytest.raises(StoreUnavailable):
                await dying.fold()
        else:
            await dying.fold()
        assert await total(book) == told
    documents = await store.documents.read("usage/")
    assert sorted(documents) == ["usage/d/2025-12-31", "usage/d/2026-01-01"]
    assert await total(book, step="hour") == told
    clock.hour += 60 * DAY
    await book_of(store, clock, await store.documents.lead()).fold()
    assert await store.documents.read("usage/") == {}


class Dying:
    """A store's documents, of which the registry that writes is killed after so many writes."""

    def __init__(self, documents: Any, writes: int) -> None:
        self._documents, self._writes = documents, writes

    async def read(self, prefix: str) -> Mapping[str, Document]:
        return dict(await self._documents.read(prefix))

    async def write(self, key: str, value: bytes | None, *, version: int, fence: Fence | None = None) -> int:
        if self._writes == 0:
            raise StoreUnavailable("killed")
        self._writes -= 1
        return int(await self._documents.write(key, value, version=version, fence=fence))

    async def lead(self) -> Fence | None:
        return None

    async def say(self, key: str, value: bytes) -> None:
        """Nobody asks."""


async def test_a_registry_that_does_not_lead_folds_nothing() -> None:
    store, clock = MemoryStore(), Hours()
    book = book_of(store, clock)
    await book.take("router-1", batch())
    clock.hour += 40 * DAY
    await book.fold()
    assert [*await store.documents.read("usage/")] == ["usage/h/2026-01-02T00/router-1"]


@pytest.mark.parametrize(
    ("hour", "result"), [(1, "counted"), (2, "wrong_hour"), (-34 * DAY, "wrong_hour"), (-33 * DAY, "counted")]
)
async def test_an_hour_that_cannot_be_is_refused_with_the_right_one(hour: int, result: str) -> None:
    book = book_of(MemoryStore(), Hours())
    answer = await book.take("router-1", batch(1, NOW + hour))
    assert (answer.result, answer.hour) == (result, NOW)


async def test_two_registries_that_write_at_once_lose_nothing() -> None:
    store, clock = MemoryStore(), Hours()

    class Overtaken(Dying):
        async def write(self, key: str, value: bytes | None, *, version: int, fence: Fence | None = None) -> int:
            if self._writes:
                self._writes -= 1
                await book_of(store, clock).take("router-1", batch(self._writes + 1, writer="e" * 16))
                raise DocumentConflict(key)
            return int(await self._documents.write(key, value, version=version, fence=fence))

    book = UsageBook(Overtaken(store.documents, 1), clock, lambda: None, hours_days=35, days=60)
    await book.take("router-1", batch())
    assert await total(book) == [2, 200]


async def test_routers_and_rows_are_bounded() -> None:
    book = book_of(MemoryStore(), Hours())
    for number in range(ROUTERS_MOST):
        await book.take(f"router-{number}", batch())
    with pytest.raises(StoreFull):
        await book.take("router-x", batch())
    for part in range(2):
        rows = [("k", f"m{part}-{number}", "r", (1, 0, 0, 0, 0, 0)) for number in range(ROWS_MOST)]
        await book.take("router-0", batch(2 + part, NOW, *rows))
    found = await book.answer(Question(NOW, NOW + 1, ("model",)))
    assert found.total().requests == ROUTERS_MOST + 2 * ROWS_MOST
    assert OTHER in {row.model for row in found.lines()}


def test_names_that_are_too_long_for_the_store_are_counted_as_other() -> None:
    names = [(f"{number:06}" * 42, "m" * 250, "r" * 250) for number in range(ROWS_MOST)]
    page = pages.with_batch(
        HourPage(), batch(1, NOW, *[(*name, (1, number, 0, 0, 0, 0)) for number, name in enumerate(names)])
    )
    assert page is not None
    assert len(pages.encode(page)) < 1.1 * (1 << 20)
    assert sum(row[3][0] for row in page.rows) == ROWS_MOST
    assert names[-1][0] in {row[0] for row in page.rows}
    assert len(page.rows) > 500


async def test_a_page_that_cannot_be_read_ends_nobody() -> None:
    store, clock = MemoryStore(), Hours()
    book = book_of(store, clock)
    await store.documents.write(pages.hour_key(NOW - 30, "router-1"), b"{", version=0)
    await store.documents.write(pages.hour_key(NOW, "router-1"), b"[]", version=0)
    await book.take("router-1", batch())
    assert await total(book) == [1, 100]


@given(st.lists(st.tuples(st.integers(0, 47), st.integers(1, 3), st.booleans()), max_size=40), st.randoms())
def test_pages_add_up_however_they_are_told_and_folded(
    told: list[tuple[int, int, bool]], chance: random.Random
) -> None:
    """Two routers, two days; batches come again, and each day is folded in parts, some hours twice."""
    hours: dict[str, HourPage] = {}
    expected = 0
    for sequence, (hour, count, again) in enumerate(told, start=1):
        key = pages.hour_key(NOW + hour, f"router-{count}")
        one = batch(sequence, NOW + hour, ("k", "m", "r", (count, 0, 0, 0, 0, 0)))
        for _ in range(1 + again):
            hours[key] = pages.with_batch(hours.get(key, HourPage()), one) or hours[key]
        expected += count
    answer = Sum(Question(NOW, NOW + 48, ("model",)))
    for day in (NOW // DAY, NOW // DAY + 1):
        of_day = {key: pages.encode(page) for key, page in hours.items() if pages.day_stamp(day) in key}
        some = {key: value for key, value in of_day.items() if chance.random() < 0.5}
        folded = pages.folded(pages.folded(DayPage(), some), dict(list(some.items())[:1]))
        gone = {key for key in some if chance.random() < 0.5}
        left = {key: value for key, value in of_day.items() if key not in gone}
        answer.add_day(day, left, pages.encode(folded))
    assert answer.total().requests == expected


async def test_a_damaged_page_holds_up_its_own_day_only() -> None:
    store, clock = MemoryStore(), Hours()
    fence = await store.documents.lead()
    await store.documents.write(pages.hour_key(NOW, "router-1"), b"{", version=0)
    await book_of(store, clock).take("router-2", batch(1, NOW))
    clock.hour += DAY
    await book_of(store, clock).take("router-2", batch(1, NOW + DAY))
    clock.hour += 40 * DAY
    await book_of(store, clock, fence).fold()
    kept = sorted(await store.documents.read("usage/"))
    assert kept == ["usage/d/2026-01-03", "usage/h/2026-01-02T00/router-1", "usage/h/2026-01-02T00/router-2"]
    clock.hour += 60 * DAY
    await book_of(store, clock, fence).fold()
    assert await store.documents.read("usage/") == {}


# Over HTTP.


async def told(client: Client, *rows: Any, hour: int | None = None, sequence: int = 1, name: str = "router-1") -> int:
    hour = parts(client).usage.hour if hour is None else hour
    body = {"writer": WRITER, "sequence": sequence, "hour": hour, "rows": rows}
    async with client.post(f"/v1/routers/{name}/usage", json=body) as answer:
        return answer.status


async def asked(client: Client, query: str = "") -> Any:
    async with client.get(f"/api/v1/usage{query}") as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def test_usage_is_told_by_key_model_and_replica_and_by_hours(client: Client, clock: FakeClock) -> None:
    clock.advance(12 * 3600)  # not midnight
    now = parts(client).usage.hour
    rows = [
        ["a", "m", "r1", [1, 10, 4, 2, 1, 0]],
        ["a", "m", "r2", [1, 20, 0, 2, 0, 2]],
        ["", "n", "r1", [3, 1, 0, 1, 0, 0]],
    ]
    assert await told(client, *rows) == 200
    assert await told(client, rows[0], hour=now - 2, sequence=2) == 200
    answer = await asked(client)
    assert answer["total"] == dict(zip(FIELDS, (6, 41, 8, 7, 2, 2), strict=True))
    first = {"key": "a", "model": "m", **dict(zip(FIELDS, (3, 40, 8, 6, 2, 2), strict=True))}
    assert answer["rows"] == [first, {"key": "", "model": "n", **dict(zip(FIELDS, (3, 1, 0, 1, 0, 0), strict=True))}]
    assert [row["replica"] for row in (await asked(client, "?by=replica"))["rows"]] == ["r1", "r2"]
    stepped = (await asked(client, "?by=&step=hour"))["rows"]
    begins = datetime.fromtimestamp((now - 2) * 3600, UTC)
    assert [row["at"] for row in stepped] == [f"{begins + timedelta(hours=more):%Y-%m-%dT%H}:00:00Z" for more in (0, 2)]
    assert len((await asked(client, "?by=&step=day"))["rows"]) == 1
    assert (await asked(client, "?by=model&key="))["rows"][0]["model"] == "n"
    assert (await asked(client, f"?since={(now - 1) * 3600}"))["total"]["requests"] == 5
    assert (await asked(client, f"?until={(now - 1) * 3600 - 1}"))["total"]["requests"] == 1
    assert (await asked(client, "?key=nobody"))["rows"] == []


@pytest.mark.parametrize(
    "query", ["?by=prompt", "?since=yesterday", "?until=-1", "?step=week", "?since=1e9", "?since=99999999999999"]
)
async def test_a_question_that_is_none_is_refused_by_name(client: Client, query: str) -> None:
    async with client.get(f"/api/v1/usage{query}") as answer:
        assert answer.status == 400
        assert (await answer.json())["field"] == query[1:].split("=", maxsplit=1)[0]


@pytest.mark.parametrize(
    "rows",
    [
        [["k", "m", "r", [1, -1, 0, 0, 0, 0]]],
        [["k", "m", "r", [1, 10**18, 0, 0, 0, 0]]],
        [["k", "m", "r", [1, "7", 0, 0, 0, 0]]],
        [["k", "m", "r", [1, 1.5, 0, 0, 0, 0]]],
        [["k", "m", "r", [1, 0, 0, 0, 0]]],
        [["k" * 257, "m", "r", [1, 0, 0, 0, 0, 0]]],
        [[None, "m", "r", [1, 0, 0, 0, 0, 0]]],
        "rows",
    ],
    ids=json.dumps,
)
async def test_counts_that_are_none_are_refused_whole(client: Client, rows: Any) -> None:
    assert await told(client, ["k", "m", "r", [1, 0, 0, 0, 0, 0]], *rows) == 422
    assert (await asked(client))["rows"] == []


async def test_who_may_only_read_tells_nothing_and_who_may_register_only_under_its_prefix(
    start_registry: StartClient, tmp_path: Path
) -> None:
    files = {}
    for name in ("read", "register"):
        files[name] = tmp_path / name
        files[name].write_text(name * 8)
        files[name].chmod(0o600)
    client = await start_registry(
        read_token_file=(str(files["read"]),), register_token_file=(f"router-={files['register']}",)
    )
    body = {"writer": WRITER, "sequence": 1, "hour": parts(client).usage.hour, "rows": []}
    for token, name, status in (("read", "router-1", 403), ("register", "mine", 403), ("register", "router-1", 200)):
        headers = {"Authorization": f"Bearer {token * 8}"}
        async with client.post(f"/v1/routers/{name}/usage", json=body, headers=headers) as answer:
            assert answer.status == status
    async with client.get("/api/v1/usage", headers={"Authorization": f"Bearer {'read' * 8}"}) as answer:
        assert answer.status == 200
    async with client.get("/api/v1/usage") as answer:
        assert answer.status == 401
