import asyncio
import signal
import socket
from typing import Any, cast

import pytest
import structlog

from common.tasks import TaskScope
from router import feed, workers
from router.settings import RouterSettings
from router.workers import Worker, WorkerPool


@pytest.fixture
async def pool() -> Any:
    async with TaskScope("pool") as scope:
        yield WorkerPool(RouterSettings(workers=2), "", scope, {})


def made(pool: WorkerPool, block: int) -> Worker:
    worker = Worker(cast("Any", None), cast("Any", None), block)
    pool._alive.add(worker)
    return worker


async def test_a_successor_counts_in_the_other_block_of_its_slot(pool: WorkerPool) -> None:
    assert await pool._free_block(1) == 2
    pool._workers[1] = made(pool, 2)
    assert await pool._free_block(1) == 3
    assert await pool._free_block(0) == 0


async def test_a_third_one_waits_for_the_one_that_drains(pool: WorkerPool) -> None:
    draining, present = made(pool, 0), made(pool, 1)
    pool._workers[0] = present
    waiting = asyncio.ensure_future(pool._free_block(0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
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
