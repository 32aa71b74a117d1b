"""Who used how many tokens: counted by workers, kept by the master, told to the registry."""

import asyncio
import json
import stat
from pathlib import Path
from typing import Any, cast

import pytest

from common.discovery.registry_client import RegistrationRefused, RegistryClient, RegistryUnavailable
from common.tokens import OTHER, ROWS_MOST, FlatRow
from common.wire.usage import UsageBatch, UsageTaken
from router.accounts import REFUSED_AGAIN_S, Accounts
from router.journal import TOTAL_ROWS_MOST, Journal, leave
from router.keys import Key
from router.ledger import Ledger
from router.policy.usage import UNTOLD, Usage
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, Plane, event, plain

ROW: FlatRow = ("team", "m", "r", (1, 100, 64, 7, 2, 0))
USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 64},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
HASH = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
"""Of `secret`."""


async def answering(plane: Plane, usage: object, *, status: bytes = b"200 OK") -> None:
    body = json.dumps({"choices": [{"finish_reason": "stop"}], "usage": usage}).encode()

    async def answers(call: Call) -> None:
        await call.send(plain(body, status=status))

    plane.route(await plane.add(answers))
    plane.engine.ledger = Ledger()


def taken(plane: Plane) -> list[FlatRow]:
    assert plane.engine.ledger is not None
    return plane.engine.ledger.take()


# The worker.


async def test_a_request_is_counted_under_the_name_of_its_key(planes: MakePlane) -> None:
    plane = await planes(access_log_sample=1.0)
    await answering(plane, USAGE)
    plane.engine.set_keys((Key("team", HASH),))
    for _ in range(2):
        assert (
            await plane.post(b'{"model":"m","messages":[]}', headers="authorization: Bearer secret\r\n")
        ).status == 200
    assert (await plane.post(b'{"model":"m","messages":[]}')).status == 401
    assert taken(plane) == [("team", "m", "r0", (2, 200, 128, 14, 4, 0))]
    assert taken(plane) == []
    assert [line.get("key") for line in plane.engine.log_lines] == ["team", "team", None]


async def test_without_keys_nobody_has_a_name_and_an_error_is_not_counted(plane: Plane) -> None:
    await answering(plane, USAGE, status=b"400 Bad Request")
    await plane.post(b'{"model":"m","messages":[]}')
    assert taken(plane) == []
    await answering(plane, USAGE)
    await plane.post(b'{"model":"m","messages":[]}')
    assert taken(plane) == [("", "m", "r0", (1, 100, 64, 7, 2, 0))]


async def test_a_stream_without_usage_is_estimated_and_one_that_breaks_off_too(plane: Plane) -> None:
    whole = True

    async def stream(call: Call) -> None:
        await call.send(SSE_HEAD + event("0"))
        for _ in range(3):
            await asyncio.sleep(0.02)
            await call.send(event("x"))
        if whole:
            await call.send(DONE)
        else:
            call.reset()

    plane.route(await plane.add(stream))
    plane.engine.ledger = Ledger()
    await plane.post(b'{"model":"m","stream":true,"messages":[]}')
    [(*names, counts)] = taken(plane)
    assert names == ["", "m", "r0"]
    assert counts[3] == counts[5] > 0
    assert counts[:3] == (1, 0, 0)
    whole = False
    await plane.post(b'{"model":"m","stream":true,"messages":[]}')
    assert taken(plane)[0][3][0] == 1


async def test_a_stored_response_that_is_read_again_is_not_used_again(plane: Plane) -> None:
    await answering(plane, USAGE)
    assert (await plane.send(b"GET /v1/responses/resp_1 HTTP/1.1\r\nhost: r\r\n\r\n")).status == 200
    assert taken(plane) == []


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -5, "completion_tokens": -7},
        {"prompt_tokens": "many", "completion_tokens": None},
        {"prompt_tokens": [1], "completion_tokens": {"a": 2}},
        {"prompt_tokens": 10**18, "completion_tokens": 1e18, "prompt_tokens_details": {"cached_tokens": 7.5}},
        "none",
        [],
    ],
)
async def test_a_usage_that_is_none_counts_a_request_and_no_tokens(plane: Plane, usage: object) -> None:
    await answering(plane, usage)
    assert (await plane.post(b'{"model":"m","messages":[]}')).status == 200
    assert taken(plane) == [("", "m", "r0", (1, 0, 0, 0, 0, 0))]


def test_more_rows_than_there_is_room_for_are_counted_as_other() -> None:
    ledger = Ledger()
    for number in range(ROWS_MOST + 5):
        ledger.note("k", f"m{number}", "r", Usage(1, UNTOLD, 1, UNTOLD), 0)
    rows = {row[:3]: row[3] for row in ledger.take()}
    assert len(rows) == ROWS_MOST + 1
    assert rows[OTHER, OTHER, OTHER] == (5, 5, 0, 5, 0, 0)


# The master.


class FakeRegistry:
    """Counts as a registry does: each batch once."""

    def __init__(self, hour: int = 500) -> None:
        self.hour = hour
        self.said: dict[tuple[str, int], int] = {}
        self.tokens = 0
        self.batches: list[UsageBatch] = []
        self.fault: Exception | None = None
        self.loses_answers = False

    async def tell_usage(self, router: str, batch: UsageBatch) -> UsageTaken:
        assert router == "router-1"
        if self.fault is not None:
            raise self.fault
        if abs(batch.hour - self.hour) > 1:
            return UsageTaken(result="wrong_hour", hour=self.hour)
        self.batches.append(batch)
        if self.said.get((batch.writer, batch.hour), 0) < batch.sequence:
            self.said[batch.writer, batch.hour] = batch.sequence
            self.tokens += sum(row[3][1] for row in batch.rows)
        if self.loses_answers:
            raise RegistryUnavailable("lost")
        return UsageTaken(result="counted", hour=self.hour)

    @property
    def client(self) -> RegistryClient:
        return cast("RegistryClient", self)


def accounts(folder: Path, now: float = 500 * 3600.0) -> Accounts:
    made = Accounts(lambda: now)
    made.journal = Journal(folder)
    return made


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


async def test_what_is_heard_is_on_disk_at_once_and_gone_when_the_registry_has_it(tmp_path: Path) -> None:
    folder = tmp_path / "usage"
    master, registry = accounts(folder), FakeRegistry()
    master.heard([ROW])
    [file] = files(folder)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    master.heard([ROW, ("", "m", "r", (1, 1, 0, 1, 0, 1))])
    await master.ship_now(registry.client, "router-1")
    assert registry.tokens == 201
    assert files(folder) == []
    await master.ship_now(registry.client, "router-1")
    assert len(registry.batches) == 1
    assert master.by_key == {("team", "m", ""): (2, 200, 128, 14, 4, 0), ("", "m", ""): (1, 1, 0, 1, 0, 1)}


async def test_a_batch_whose_answer_is_lost_is_sent_again_as_it_was_and_counts_once(tmp_path: Path) -> None:
    master, registry = accounts(tmp_path), FakeRegistry()
    master.heard([ROW])
    registry.loses_answers = True
    await master.ship_now(registry.client, "router-1")
    master.heard([ROW])
    await master.ship_now(registry.client, "router-1")
    registry.loses_answers = False
    await master.ship_now(registry.client, "router-1")  # of a router that stops it is the last: all of it goes
    assert registry.batches[0] == registry.batches[1] == registry.batches[2]
    assert registry.tokens == 200
    assert files(tmp_path) == []


async def test_what_a_killed_master_and_its_workers_left_is_told_by_the_next_one_D35(tmp_path: Path) -> None:
    killed, registry = accounts(tmp_path), FakeRegistry()
    killed.heard([ROW])
    registry.loses_answers = True
    await killed.ship_now(registry.client, "router-1")
    killed.heard([ROW])
    [*_, last] = sorted(files(tmp_path), key=lambda path: path.stat().st_mtime_ns)
    with last.open("ab") as file:
        file.write(b'[500,[["team","m","r",[1,100')  # half written
    leave(tmp_path, 500, [ROW])
    (tmp_path / ".0123456789abcdef-1.jsonl.tmp-1-ab").write_bytes(b"[]")
    (tmp_path / "0123456789abcdef-1.jsonl").write_bytes(b'[500,[["k","m","r",[-1,0,0,0,0,0]]]]\n\xff\n[1e400,[]]\n')
    registry.loses_answers = False
    await accounts(tmp_path).ship_now(registry.client, "router-1")
    assert registry.tokens == 300
    assert [path.name for path in files(tmp_path)] == [".0123456789abcdef-1.jsonl.tmp-1-ab"]


async def test_a_registry_that_is_away_for_long_fills_neither_disk_nor_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.journal.COMPACT_BYTES", 4096)
    master, registry = accounts(tmp_path), FakeRegistry()
    registry.fault = RegistryUnavailable("away")
    for number in range(2000):
        master.heard([("team", "m", f"r{number % 10}", (1, 1, 0, 0, 0, 0))])
        if number % 100 == 0:
            await master.ship_now(registry.client, "router-1")
    assert sum(path.stat().st_size for path in files(tmp_path)) < 16_384
    registry.fault = None
    await master.ship_now(registry.client, "router-1")
    await master.ship_now(registry.client, "router-1")
    assert registry.tokens == 2000
    assert max(len(batch.rows) for batch in registry.batches) == 10


def test_rows_of_all_hours_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.journal.TOTAL_ROWS_MOST", 3)
    journal = Journal(tmp_path)
    assert TOTAL_ROWS_MOST > ROWS_MOST
    for hour in range(4):
        journal.add(hour, [("k", f"m{number}", "r", (1, 0, 0, 0, 0, 0)) for number in range(2)])
    batch = journal.seal()
    assert batch is not None
    assert sum(counts[0] for rows in batch.hours.values() for counts in rows.values()) == 8
    assert batch.hours[3] == {(OTHER, OTHER, OTHER): (2, 0, 0, 0, 0, 0)}


async def test_a_clock_that_is_wrong_costs_no_token(tmp_path: Path) -> None:
    registry = FakeRegistry()
    for hour in (0, 7000, 500):
        master = accounts(tmp_path, hour * 3600.0)
        master.heard([ROW])
        await master.ship_now(registry.client, "router-1")
        await master.ship_now(registry.client, "router-1")
    assert registry.tokens == 300
    assert {batch.hour for batch in registry.batches} == {500}


async def test_a_disk_that_refuses_is_told_of_once_and_what_it_lacks_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    master, registry = accounts(tmp_path), FakeRegistry()

    def full(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("router.journal.os.open", full)
        patched.setattr("router.journal.write_atomic", full)
        for _ in range(3):
            master.heard([ROW])
    assert capsys.readouterr().out.count("usage.not_kept") == 1
    master.heard([ROW])
    await accounts(tmp_path).ship_now(registry.client, "router-1")
    assert registry.tokens == 400


async def test_a_registry_that_refuses_is_asked_again_later_and_told_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    master, registry = accounts(tmp_path), FakeRegistry()
    registry.fault = RegistrationRefused("403")
    for _ in range(3):
        master.heard([ROW])
        assert await master.ship_now(registry.client, "router-1") == REFUSED_AGAIN_S
    assert capsys.readouterr().out.count("usage.not_told") == 1
    registry.fault = None
    await master.ship_now(registry.client, "router-1")
    await master.ship_now(registry.client, "router-1")
    assert registry.tokens == 300


async def test_a_file_that_cannot_be_read_is_put_aside_and_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "0123456789abcdef-1.jsonl").mkdir()
    leave(tmp_path, 500, [ROW])
    registry = FakeRegistry()
    await accounts(tmp_path).ship_now(registry.client, "router-1")
    assert registry.tokens == 100
    assert [path.name for path in files(tmp_path)] == ["0123456789abcdef-1.unreadable"]


async def test_a_wrong_hour_beside_a_right_one_counts_once_though_the_registry_goes_in_between(tmp_path: Path) -> None:
    """What was moved to another hour is not moved again when the rest of its batch is sent again, nor after a kill."""
    now = [7000 * 3600.0]
    master, registry = Accounts(lambda: now[0]), FakeRegistry()
    master.journal = Journal(tmp_path)
    master.heard([ROW])
    now[0] = 500 * 3600.0
    master.heard([ROW])
    registry.loses_answers = True  # of what it counts; a wrong hour is told
    for _ in range(3):
        await master.ship_now(registry.client, "router-1")
    next_life = accounts(tmp_path)
    registry.loses_answers = False
    for _ in range(2):
        await next_life.ship_now(registry.client, "router-1")
    assert registry.tokens == 200
    assert files(tmp_path) == []
