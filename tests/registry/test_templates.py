"""The fleet's templates: one line for each content of a name, with the nodes that have it so; and bodies passed on as they are."""

import json
from typing import Any

from registry.http.templates import merged
from tests.registry.conftest import Client
from tests.registry.test_placement import index_of, record
from tests.registry.test_replica_calls import REPLICAS, FakeAgent, ask, join, serving

MOCK: dict[str, Any] = {"name": "mock", "digest": "d1", "accelerators": 1, "parameters": {"type": "object"}}


def test_a_template_is_told_once_for_each_content_with_its_nodes() -> None:
    index = index_of(
        record("n1", templates=[MOCK]),
        record("n2", templates=[MOCK, {"name": "own", "digest": "d3"}], stale=True),
        record("n3", templates=[{**MOCK, "digest": "d2"}]),
    )
    told = [(it.name, it.digest, it.nodes) for it in merged(index.agents)]
    assert told == [
        ("cbclient", "", ["n1", "n2", "n3"]),
        ("mock", "d1", ["n1", "n2"]),
        ("mock", "d2", ["n3"]),
        ("own", "d3", ["n2"]),
    ]


def test_a_broken_template_is_told_and_nothing_is_planned_with_it() -> None:
    (agent,) = index_of(record("n1", templates=[MOCK, {"name": "bad", "error": "no"}])).agents
    assert list(agent.templates) == ["mock"]
    assert agent.templates["mock"].accelerators == 1
    assert {it.name: it.error for it in merged([agent])}["bad"] == "no"


def test_what_is_no_template_costs_no_other() -> None:
    odd: list[Any] = [5, {}, {"name": 7}, {"name": "half", "accelerators": "many"}, MOCK]
    (agent,) = index_of(record("n1", templates=odd)).agents
    assert {"half", "mock"} == set(agent.templates)
    assert agent.templates["half"].accelerators == 0
    (silent,) = index_of(record("n2", templates="x")).agents
    assert silent.templates == {}


async def test_the_call_answers_from_heartbeats_and_a_body_with_backend_goes_on_as_it_is(client: Client) -> None:
    async with serving(FakeAgent("n1")) as agent:
        await join(client, agent, templates=[MOCK])
        status, content = await ask(client, "GET", "/api/v1/templates")
        assert status == 200
        assert {it["name"]: it["nodes"] for it in content["templates"]} == {"cbclient": ["n1"], "mock": ["n1"]}
        body = {"backend": {"template": "mock", "parameters": {"model": "m"}}, "model_name": "m", "odd": [1]}
        status, _ = await ask(client, "POST", REPLICAS, json=body)
        assert status == 201
        assert json.loads(agent.bodies[-1]) == body
