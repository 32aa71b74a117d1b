import asyncio
import signal
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from common.tasks import TaskScope
from router import feed, workers
from router.model import Table
from router.settings import RouterSettings
from router.worker_process import Worker
from router.workers import WorkerPool


@pytest.fixture
async def pool() -> Any:
    async with TaskScope("pool") as scope:
        yield WorkerPool(RouterSettings(workers=2), "", scope, {})


class Line:
    """What the master writes to one worker; nothing once that has closed."""

    def __init__(self) -> None:
        self.told: list[feed.Message] = []
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes) -> None:
        assert not self.closed, "uvloop raises here"
        self.told.append(feed._decode(data[feed._LENGTH.size :]))


def made(pool: WorkerPool, block: int) -> Worker:
    worker = Worker(cast("Any", None), cast("Any", Line()), block)
    pool._alive.add(worker)
    return worker


async def test_a_successor_counts_in_the_other_block_of_its_slot(pool: WorkerPool) -> None:
    assert await pool._free_block(1) == 2
    pool._workers[1] = made(pool, 2)
    assert await pool._free_block(1) == 3
    assert await pool._free_block(0) == 0


def told(worker: Worker) -> list[feed.Message]:
    return cast("Line", worker.writer).told


async def test_a_third_one_waits_for_the_one_that_drains_and_has_it_hurry(pool: WorkerPool) -> None:
    draining, present = made(pool, 0), made(pool, 1)
    pool._workers[0] = present
    waiting = asyncio.ensure_future(pool._free_block(0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert told(draining) == [feed.Retire(hand_over=True, within_s=pool._settings.drain_timeout_s)]
    assert not told(present)
    pool._alive.discard(draining)
    draining.over.set()
    assert await asyncio.wait_for(waiting, 1) == 0


async def test_a_worker_that_cannot_start_is_tried_ever_more_rarely_and_told_of(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "RESPAWN_FIRST_S", 0.001)
    monkeypatch.setattr(workers, "RESPAWN_LAST_S", 0.004)
    tried = asyncio.Semaphore(0)

    async def spawn(_index: int) -> Worker:
        worker = Worker(cast("Any", None), cast("Any", None), 0)
        worker.over.set()
        tried.release()
        return worker

    monkeypatch.setattr(pool, "_spawn", spawn)
    with structlog.testing.capture_logs() as lines:
        keeping = asyncio.ensure_future(pool._keep(0))
        async with asyncio.timeout(20):
            for _ in range(4):
                await tried.acquire()
        keeping.cancel()
    assert [(line["failures"], line["next_try_s"]) for line in lines[:3]] == [(1, 0.002), (2, 0.004), (3, 0.004)]
    assert {line["event"] for line in lines} == {"worker.not_started"}


async def test_a_worker_that_starts_slowly_is_left_to_it_and_one_that_served_is_hung(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a start takes long; ended for that, it would never come to an end."""
    monkeypatch.setattr(workers, "SILENCE_LIMIT_S", 0.2)
    process = await asyncio.create_subprocess_exec("sleep", "600")
    has_ended = asyncio.ensure_future(process.wait())
    ours, its = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    _, beats = await asyncio.open_connection(sock=its)
    worker = Worker(process, writer, 0)
    with structlog.testing.capture_logs() as lines:
        hearing = asyncio.ensure_future(pool._hear(0, worker, reader))
        await asyncio.sleep(1)
        assert not has_ended.done()
        feed.write(beats, feed.WorkerStatus(1, 0, 0, compiled=False))
        async with asyncio.timeout(20):
            await hearing
    beats.close()
    assert await has_ended == -signal.SIGKILL
    assert [line["silent_s"] for line in lines if line["event"] == "worker.hung"] == [0.2]


async def test_a_worker_that_has_just_ended_does_not_end_the_router_that_tells_it_something(pool: WorkerPool) -> None:
    gone, present = made(pool, 0), made(pool, 1)
    cast("Line", gone.writer).closed = True
    pool.publish(Table(7))
    assert told(present) == [feed.Changes(7, ())]
    assert not told(gone)


async def test_worker_that_dies_while_it_is_replaced_is_not_replaced_twice(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two would count in one block, and one of them serve for ever without being known."""
    monkeypatch.setattr(workers, "RESPAWN_FIRST_S", 0.0)
    spawned: asyncio.Queue[Worker] = asyncio.Queue()

    async def spawn(_index: int) -> Worker:
        worker = made(pool, 0)
        spawned.put_nowait(worker)
        return worker

    def serve(worker: Worker) -> None:
        worker.status = feed.WorkerStatus(0, 0, 0, compiled=False)
        worker.process = cast("Any", SimpleNamespace(pid=1))
        worker.answered.set()

    monkeypatch.setattr(pool, "_spawn", spawn)
    async with asyncio.timeout(20):
        keeping = asyncio.ensure_future(pool._keep(0))
        old = await spawned.get()
        serve(old)
        rolling = asyncio.ensure_future(pool.roll())
        new = await spawned.get()
        old.over.set()
        await asyncio.sleep(0.05)  # enough for whoever keeps the slot to see it
        serve(new)
        await rolling
        assert pool._workers[0] is new
        assert spawned.empty()
        new.over.set()
        assert await spawned.get() is pool._workers[0]
        keeping.cancel()


async def test_roll_waits_for_the_new_worker_and_not_for_a_word_of_the_old_one(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = made(pool, 0), made(pool, 1)
    pool._workers[0] = old

    async def spawn(_index: int) -> Worker:
        return new

    monkeypatch.setattr(pool, "_spawn", spawn)
    rolling = asyncio.ensure_future(pool.roll())
    await asyncio.sleep(0)
    pool._serving[0].set()  # as the old one's beat does each second
    await asyncio.sleep(0.05)
    assert not told(old)
    new.over.set()
    new.answered.set()
    new.process = cast("Any", SimpleNamespace(kill=lambda: None))
    await rolling
    assert pool._workers[0] is old, "the new one never served"
    assert not told(old)
