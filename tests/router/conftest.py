import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from common.tasks import TaskScope
from router.policy.models import ModelRules
from tests.router.fakes import LIMITS, Plane, make_plane

MakePlane = Callable[..., Awaitable[Plane]]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The router runs on uvloop; so do its tests."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def planes(tmp_path: Path) -> AsyncIterator[MakePlane]:
    """Makes data planes with other limits than the usual."""
    made: list[Plane] = []
    async with TaskScope("plane") as scope:

        async def make(*, rules: ModelRules | None = None, **limits: Any) -> Plane:
            plane = await make_plane(replace(LIMITS, **limits), scope, tmp_path / "control.sock", rules)
            made.append(plane)
            return plane

        yield make
        for plane in made:
            await plane.stop()


@pytest.fixture
async def plane(planes: MakePlane) -> Plane:
    return await planes()
