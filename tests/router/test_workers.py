import asyncio
from typing import Any, cast

import pytest

from common.tasks import TaskScope
from router.settings import RouterSettings
from router.workers import Worker, WorkerPool


@pytest.fixture
async def pool() -> Any:
    async with TaskScope("pool") as scope:
        yield WorkerPool(RouterSettings(workers=2), "", scope, {})


def member(pool: WorkerPool, block: int) -> Worker:
    made = Worker(cast("Any", None), cast("Any", None), block)
    pool._alive.add(made)
    return made


async def test_a_successor_counts_in_the_other_block_of_its_slot(pool: WorkerPool) -> None:
    assert await pool._free_block(1) == 2
    pool._members[1] = member(pool, 2)
    assert await pool._free_block(1) == 3
    assert await pool._free_block(0) == 0


async def test_a_third_one_waits_for_the_one_that_drains(pool: WorkerPool) -> None:
    draining, present = member(pool, 0), member(pool, 1)
    pool._members[0] = present
    waiting = asyncio.ensure_future(pool._free_block(0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    pool._alive.discard(draining)
    draining.over.set()
    assert await asyncio.wait_for(waiting, 1) == 0
