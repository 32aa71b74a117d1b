"""The routes at port + 1, each with its errors."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest
from aiohttp.test_utils import TestClient, TestServer

from babysitter.api import Source, make_app
from babysitter.machine import State
from babysitter.supervisor import Supervisor
from babysitter.view import View
from tests.babysitter.test_view import READY

Client = TestClient[Any, Any]


class StillSupervisor:
    """Shows one picture."""

    def __init__(self) -> None:
        self.picture = READY

    def view(self) -> View:
        return self.picture


@pytest.fixture
def supervisor() -> StillSupervisor:
    return StillSupervisor()


@pytest.fixture
async def client(supervisor: StillSupervisor) -> AsyncIterator[Client]:
    source = Source(supervisor=cast("Supervisor", supervisor), router_url="http://r", started=0.0)
    async with TestClient(TestServer(make_app(source))) as made:
        yield made


async def test_health_is_200_whatever_the_server_does(client: Client, supervisor: StillSupervisor) -> None:
    for state in State:
        supervisor.picture = replace(READY, state=state)
        answer = await client.get("/health")
        assert answer.status == 200
        assert (await answer.json())["status"] == ("healthy" if state is State.READY else supervisor.picture.status)


@pytest.mark.parametrize("path", ["/models", "/v1/models"])
async def test_models_are_the_servers(client: Client, path: str) -> None:
    answer = await client.get(path)
    assert await answer.json() == {"object": "list", "data": [dict(READY.models[0])]}


async def test_models_are_503_until_ready(client: Client, supervisor: StillSupervisor) -> None:
    supervisor.picture = replace(READY, state=State.WAITING_FOR_READY)
    answer = await client.get("/models")
    assert answer.status == 503
    assert await answer.json() == {"error": "the server is not ready: waiting_for_ready"}


async def test_info_shows_the_report(client: Client) -> None:
    told = await (await client.get("/info")).json()
    assert told["replica"]["replica_id"] == "r1"
    assert told["router_url"] == "http://r"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "/health", 405), ("GET", "/nothing", 404), ("DELETE", "/info", 405)]
)
async def test_anything_else_is_a_json_error(client: Client, method: str, path: str, status: int) -> None:
    answer = await client.request(method, path)
    assert answer.status == status
    assert "error" in await answer.json()
