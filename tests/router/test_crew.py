import asyncio
from typing import Any, cast

import pytest

from common.tasks import TaskScope
from router.crew import Crew, _Member
from router.settings import RouterSettings


@pytest.fixture
async def crew() -> Any:
    async with TaskScope("crew") as scope:
        yield Crew(RouterSettings(workers=2), "", scope, {})


def member(crew: Crew, block: int) -> _Member:
    made = _Member(cast("Any", None), cast("Any", None), block)
    crew._alive.add(made)
    return made


async def test_a_successor_counts_in_the_other_block_of_its_slot(crew: Crew) -> None:
    assert await crew._free_block(1) == 2
    crew._members[1] = member(crew, 2)
    assert await crew._free_block(1) == 3
    assert await crew._free_block(0) == 0


async def test_a_third_one_waits_for_the_one_that_drains(crew: Crew) -> None:
    draining, present = member(crew, 0), member(crew, 1)
    crew._members[0] = present
    waiting = asyncio.ensure_future(crew._free_block(0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    crew._alive.discard(draining)
    draining.over.set()
    assert await asyncio.wait_for(waiting, 1) == 0
