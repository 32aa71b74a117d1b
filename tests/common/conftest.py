from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest

from common.http.client import make_session
from tests.common.fake_registry import FakeRegistry


@pytest.fixture
async def make_registry() -> AsyncIterator[Callable[[], Awaitable[FakeRegistry]]]:
    made: list[FakeRegistry] = []

    async def make() -> FakeRegistry:
        registry = FakeRegistry()
        await registry.begin()
        made.append(registry)
        return registry

    yield make
    for registry in made:
        await registry.end()


@pytest.fixture
async def registry(make_registry: Callable[[], Awaitable[FakeRegistry]]) -> FakeRegistry:
    return await make_registry()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with make_session(timeout_s=5) as session:
        yield session
