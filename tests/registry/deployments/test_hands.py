"""How calls to agents are spread."""

import asyncio
import time
from typing import Any

import pytest

from common.clock import SystemClock
from common.tasks import TaskScope
from registry.core.catalogue import Catalogue
from registry.core.writer import Writer
from registry.deployments import hands
from registry.deployments.hands import Hands
from registry.fleet.index import FleetIndex
from registry.store.memory import MemoryStore

Unused: Any = None


def hands_in(scope: TaskScope, *, write_s: float = 0.0) -> Hands:
    """Whose store takes so long for a write."""
    writer = Writer(Catalogue(epoch="e"), MemoryStore(), SystemClock(), write_s=write_s)
    return Hands(agents=Unused, index=FleetIndex(), writer=writer, scope=scope, done=asyncio.Event())


async def test_a_large_deployment_is_no_burst_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands, "CALLS_PER_S", 100.0)
    called: list[float] = []

    async def call() -> None:
        called.append(time.monotonic())

    async with TaskScope("test") as scope:
        ours = hands_in(scope)
        began = time.monotonic()
        for number in range(40):
            assert ours._begin(str(number), f"node-{number}", call())
        async with asyncio.timeout(20):
            while len(called) < 40:
                await asyncio.sleep(0.01)
    assert called[-1] - began >= (39 - hands.CALLS_AHEAD) / 100.0 - 0.01
    assert all(called[number + 20] - called[number] >= 0.09 for number in range(20))


async def test_a_store_that_has_too_much_to_do_is_given_less_and_who_wakes_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hands, "CALLS_PER_S", 100.0)
    called: list[float] = []

    async def call() -> None:
        called.append(time.monotonic())

    async with TaskScope("test") as scope:
        ours = hands_in(scope, write_s=0.02)
        for number in range(4):
            ours._begin(str(number), "node", call())
        assert ours.in_line == 4
        ours._begin("wake", "node", call(), in_turn=False)
        async with asyncio.timeout(20):
            while len(called) < 5:
                await asyncio.sleep(0.01)
    assert called[-1] - called[0] >= 3 * 0.02 * hands.WRITE_REST - 0.2
    assert ours.in_line == 0


@pytest.mark.filterwarnings("error")
async def test_a_stop_leaves_no_call_that_had_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands, "CALLS_PER_S", 0.01)

    async def call() -> None:
        await asyncio.sleep(0)

    async with TaskScope("test", close_timeout_s=5.0) as scope:
        ours = hands_in(scope)
        for number in range(20):
            ours._begin(str(number), "node", call())
        await asyncio.sleep(0)
        await scope.close()
    assert not ours._busy
