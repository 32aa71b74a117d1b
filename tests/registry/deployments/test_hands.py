"""How calls to agents are spread."""

import asyncio
import time
from typing import Any

import pytest

from common.tasks import TaskScope
from registry.deployments import hands
from registry.deployments.hands import Hands
from registry.fleet.index import FleetIndex

Unused: Any = None


async def test_a_large_deployment_is_no_burst_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands, "CALLS_PER_S", 100.0)
    called: list[float] = []

    async def call() -> None:
        called.append(time.monotonic())

    async with TaskScope("test") as scope:
        ours = Hands(agents=Unused, index=FleetIndex(), writer=Unused, scope=scope, done=asyncio.Event())
        began = time.monotonic()
        for number in range(40):
            assert ours._begin(str(number), f"node-{number}", call())
        async with asyncio.timeout(20):
            while len(called) < 40:
                await asyncio.sleep(0.01)
    assert called[-1] - began >= (39 - hands.CALLS_AHEAD) / 100.0 - 0.01
    assert all(called[number + 20] - called[number] >= 0.09 for number in range(20))


@pytest.mark.filterwarnings("error")
async def test_a_stop_leaves_no_call_that_had_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands, "CALLS_PER_S", 0.01)

    async def call() -> None:
        await asyncio.sleep(0)

    async with TaskScope("test", close_timeout_s=5.0) as scope:
        ours = Hands(agents=Unused, index=FleetIndex(), writer=Unused, scope=scope, done=asyncio.Event())
        for number in range(20):
            ours._begin(str(number), "node", call())
        await asyncio.sleep(0)
        await scope.close()
    assert not ours._busy
