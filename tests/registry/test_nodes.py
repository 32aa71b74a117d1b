"""The nodes as the registry shows them, draining one, and a create call that one node has no accelerators for."""

from typing import Any

import pytest
from aiohttp import web

from tests.registry.conftest import Client, StartClient
from tests.registry.test_replica_calls import REPLICAS, WANTED, FakeAgent, ask, join, serving

NODES = "/api/v1/nodes"
ONE = {"index": 0, "kind": "cuda", "memory_mb": 1000, "replicas": ["abc123def456"], "claims": [], "shared_mb": 0}
TELLS = {
    "replicas_live": 1,
    "labels": {"zone": "a"},
    "accelerators": [ONE, {"index": 1, "kind": "cuda"}],
    "readings": [{"index": 0, "used_mb": 700, "busy_percent": 40}, {"index": 9, "used_mb": 1}],
}


class Lacking(FakeAgent):
    """An agent that has no accelerators: for now, or for ever."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path_qs))
        return web.json_response(
            {"error": f"{self.node} has none", "code": "no_accelerators"}, status=self.status or 503
        )


@pytest.fixture
async def client(start_registry: StartClient) -> Client:
    return await start_registry()


async def test_a_node_is_shown_as_its_heartbeat_tells(client: Client) -> None:
    async with serving(FakeAgent("n1")) as agent:
        await join(client, agent, **TELLS)
        status, content = await ask(client, "GET", NODES)
        first = {**ONE, "used_mb": 700, "busy_percent": 40}
        second = {"index": 1, "kind": "cuda", "memory_mb": 0, "replicas": [], "claims": [], "shared_mb": 0}
        node = {
            "node": "n1",
            "url": agent.url,
            "labels": {"zone": "a"},
            "live": 1,
            "capacity": 9,
            "room": 8,
            "away": False,
            "draining": False,
            "accelerators": [first, second],
        }
        assert (status, content) == (200, {"total": 1, "nodes": [node]})
        await join(client, agent, **{**TELLS, "readings": [{"index": 0, "used_mb": 800}]})
        _, content = await ask(client, "GET", NODES)
        assert content["nodes"][0]["accelerators"][0]["used_mb"] == 800


@pytest.mark.parametrize("odd", [{"accelerators": "many"}, {"accelerators": [{"index": "x"}]}, {"labels": 3}])
async def test_an_agent_that_tells_nonsense_is_a_node_all_the_same(client: Client, odd: dict[str, Any]) -> None:
    async with serving(FakeAgent("n1")) as agent:
        await join(client, agent, **{**TELLS, **odd})
        status, content = await ask(client, "GET", NODES)
        assert (status, content["nodes"][0]["room"]) == (200, 8)


async def test_a_drained_node_gets_nothing_new_until_it_is_back(client: Client) -> None:
    async with serving(FakeAgent("n1")) as first, serving(FakeAgent("n2")) as second:
        await join(client, first)
        await join(client, second)
        assert (await ask(client, "POST", f"{NODES}/n1/drain"))[1]["draining"] is True
        await join(client, first)  # another heartbeat changes nothing
        for _ in range(3):
            assert (await ask(client, "POST", REPLICAS, json=WANTED))[0] == 201
        assert (len(first.replicas), len(second.replicas)) == (0, 3)
        assert (await ask(client, "POST", f"{NODES}/n1/undrain"))[1]["draining"] is False
        assert (await ask(client, "POST", REPLICAS, json=WANTED))[0] == 201
        assert len(first.replicas) == 1
        assert (await ask(client, "POST", f"{NODES}/n9/drain"))[0] == 404


async def test_a_node_that_lacks_accelerators_sends_the_call_to_the_next(client: Client) -> None:
    wanted = {**WANTED, "accelerators": 2, "request_id": "q"}
    async with serving(Lacking("n1")) as first, serving(FakeAgent("n2")) as second:
        await join(client, first)
        await join(client, second, replicas_live=5)
        assert (await ask(client, "POST", REPLICAS, json=wanted))[0] == 201
        assert (len(first.asked), len(second.replicas)) == (1, 1)
        status, _ = await ask(client, "POST", REPLICAS, json={**wanted, "request_id": "p", "placement": {"node": "n1"}})
        assert status == 503
        assert len(second.replicas) == 1


async def test_when_all_lack_them_the_one_that_may_have_them_later_is_heard(client: Client) -> None:
    async with serving(Lacking("n1", status=422)) as first, serving(Lacking("n2")) as second:
        await join(client, first)
        await join(client, second)
        status, content = await ask(client, "POST", REPLICAS, json=WANTED)
        assert (status, content["error"], content["code"]) == (503, "n2 has none", "no_accelerators")
        second.status = 422
        status, content = await ask(client, "POST", REPLICAS, json=WANTED)
        assert (status, content["error"]) == (422, "n1 has none")


async def test_a_refusal_of_another_kind_is_the_answer(client: Client) -> None:
    async with serving(FakeAgent("n1", status=422)) as first, serving(FakeAgent("n2")) as second:
        await join(client, first)
        await join(client, second, replicas_live=2)
        assert (await ask(client, "POST", REPLICAS, json=WANTED))[0] == 422
        assert second.asked == []
