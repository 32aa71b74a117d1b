"""Deployments: a real registry process, fake agents, and what becomes of what people say should run."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.ports import free_port
from tests.registry.etcd import Etcd
from tests.registry.fake_agent import FakeAgent
from tests.registry.processes import running

ROOT = "/api/v1/deployments"


def spec(**changes: Any) -> dict[str, Any]:
    return {"template": "mock", "parameters": {"model": "m"}, **changes}


@dataclass
class Caller:
    """Asks a registry."""

    url: str
    session: aiohttp.ClientSession
    counts: dict[str, int] = field(default_factory=dict)

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
        async with self.session.request(method, self.url + path, json=body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def put(self, name: str, body: dict[str, Any], query: str = "") -> dict[str, Any]:
        status, answer = await self.call("PUT", f"{ROOT}/{name}{query}", body)
        assert status in (200, 201), answer
        return answer

    async def info(self, name: str) -> dict[str, Any]:
        return (await self.call("GET", f"{ROOT}/{name}"))[1]

    async def demand(self, model: str, *, waiting: int = 0, in_flight: int = 0, requests: int = 0) -> dict[str, Any]:
        told = {"models": {model: {"waiting": waiting, "in_flight": in_flight, "requests": requests}}}
        status, answer = await self.call("POST", "/v1/routers/r/demand", told)
        assert status == 200, answer
        return {it["model"]: it for it in answer["models"]}


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Caller]:
    with running(tmp_path) as (_, url):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            yield Caller(url, session)


@pytest.fixture
async def agent(caller: Caller) -> AsyncIterator[FakeAgent]:
    async with FakeAgent([caller.url]).serving() as one:
        await eventually(lambda: known(caller, "n1"))
        yield one


async def known(caller: Caller, node: str) -> bool:
    """Its agent has told of its templates."""
    body = spec(placement={"nodes": [node]})
    status, answer = await caller.call("PUT", f"{ROOT}/never-made?dry_run=true", body)
    return status == 200 and answer["warnings"] == []


async def eventually(condition: Callable[[], Awaitable[bool]], within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < deadline, "it does not come to be"
        await asyncio.sleep(0.05)


async def phase(caller: Caller, name: str, wanted: str, ready: int | None = None) -> bool:
    info = await caller.info(name)
    return info["phase"] == wanted and (ready is None or info["ready"] == ready)


async def test_what_is_put_is_made_scaled_and_removed(caller: Caller, agent: FakeAgent) -> None:
    answer = await caller.put("chat", spec(replicas={"min": 2, "max": 2}))
    assert (answer["change"], answer["version"], answer["revision"]) == ("created", 1, 1)
    await eventually(lambda: phase(caller, "chat", "ready", 2))
    body = agent.bodies[0]
    assert body["backend"] == {"template": "mock", "parameters": {"model": "m"}}
    assert body["model_name"] == "chat"
    assert body["metadata"] == {"deployment": "chat", "revision": 1}
    assert body["placement"] == {"node": "n1"}
    assert body["request_id"].startswith("dep-")
    assert (await caller.put("chat", spec(replicas={"min": 2, "max": 2})))["change"] == "unchanged"
    assert (await caller.put("chat", spec(replicas={"min": 3, "max": 3})))["change"] == "updated"
    await eventually(lambda: phase(caller, "chat", "ready", 3))
    status, _ = await caller.call("POST", f"{ROOT}/chat/scale", {"replicas": 1})
    assert status == 200
    await eventually(lambda: phase(caller, "chat", "ready", 1))

    async def one_left() -> bool:
        return len(agent.live()) == 1

    await eventually(one_left)
    status, _ = await caller.call("DELETE", f"{ROOT}/chat")
    assert status == 202

    async def gone() -> bool:
        return (await caller.call("GET", f"{ROOT}/chat"))[0] == 404

    await eventually(gone)
    assert agent.live() == []
    assert set(agent.made.values()) == {1}


async def test_a_request_that_waits_starts_a_cold_model_at_once(caller: Caller, agent: FakeAgent) -> None:
    await caller.put("cold", spec(model="big", replicas={"min": 0, "max": 1}))
    await eventually(lambda: phase(caller, "cold", "cold"))
    await asyncio.sleep(1.2)
    assert agent.made == {}
    began = time.monotonic()
    assert (await caller.demand("big", waiting=1))["big"]["phase"] == "cold"
    while not agent.made:
        assert time.monotonic() - began < 1.0, "it waits for the next second"
        await asyncio.sleep(0.005)
        await caller.demand("big", waiting=1)
    assert time.monotonic() - began < 0.5

    async def ready() -> bool:
        return bool((await caller.demand("big", waiting=1))["big"]["phase"] == "ready")

    await eventually(ready)
    assert set(agent.made.values()) == {1}
    async with caller.session.get(caller.url + "/metrics") as answer:
        page = await answer.text()
    assert 'deployment_ready{deployment="cold"} 1.0' in page
    assert "deployment_cold_starts_total 1.0" in page


async def test_what_was_put_to_sleep_and_asked_for_stays_awake_whoever_leads(tmp_path: Path) -> None:
    port = str(free_port())
    agent = FakeAgent([f"http://127.0.0.1:{port}"], sleeps=True)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session, agent.serving():
        caller = Caller(agent.registries[0], session)
        with running(tmp_path, "--port", port):
            await eventually(lambda: known(caller, "n1"))
            await caller.put("chat", spec(model="big", replicas={"min": 0, "max": 1}))
            await caller.call("POST", f"{ROOT}/chat/wake")
            await eventually(lambda: phase(caller, "chat", "ready", 1))
            await caller.call("POST", f"{ROOT}/chat/sleep")

            async def sleeps() -> bool:
                info = await caller.info("chat")
                return (info["phase"], info["asleep"], info["replicas"][0]["status"]) == ("asleep", 1, "asleep")

            await eventually(sleeps)
            slots = (await caller.call("GET", "/api/v1/nodes"))[1]["nodes"][0]["accelerators"]
            assert sum(len(it["replicas"]) for it in slots) == 1, "its accelerator stays its own"
        with running(tmp_path, "--port", port):
            await eventually(lambda: phase(caller, "chat", "asleep"))
            await asyncio.sleep(1.5)
            assert await phase(caller, "chat", "asleep"), "another leader leaves it asleep"
            await caller.demand("big", waiting=1)
            await eventually(lambda: phase(caller, "chat", "ready", 1))
            await caller.demand("big", requests=1)
        calls = [call.split()[0] for call in agent.calls]
        assert calls == ["sleep", "wake"]
        with running(tmp_path, "--port", port):
            await eventually(lambda: phase(caller, "chat", "ready", 1))
            await asyncio.sleep(2.5)
            assert await phase(caller, "chat", "ready", 1)
            assert len(agent.calls) == 2


async def test_a_replica_that_cannot_sleep_is_stopped_instead(caller: Caller) -> None:
    async with FakeAgent([caller.url], sleeps=True, sleepless=True).serving() as agent:
        await eventually(lambda: known(caller, "n1"))
        await caller.put("chat", spec(replicas={"min": 0, "max": 1}))
        await caller.call("POST", f"{ROOT}/chat/wake")
        await eventually(lambda: phase(caller, "chat", "ready", 1))
        await caller.call("POST", f"{ROOT}/chat/sleep")
        await eventually(lambda: phase(caller, "chat", "cold"), within_s=5)
        assert [call.split()[0] for call in agent.calls] == ["sleep", "DELETE"]


async def test_another_parameter_rolls_and_undo_brings_it_back(caller: Caller, agent: FakeAgent) -> None:
    await caller.put("chat", spec())
    await eventually(lambda: phase(caller, "chat", "ready", 1))
    answer = await caller.put("chat", spec(parameters={"model": "other"}), "?dry_run=true")
    assert answer["change"] == "rolls"
    assert answer["diff"] == {"parameters.model": ["m", "other"]}
    assert (await caller.info("chat"))["revision"] == 1
    await caller.put("chat", spec(parameters={"model": "other"}))

    async def rolled(revision: int) -> bool:
        info = await caller.info("chat")
        return info["phase"] == "ready" and [it["revision"] for it in info["replicas"]] == [revision]

    await eventually(lambda: rolled(2))
    assert agent.bodies[-1]["backend"]["parameters"] == {"model": "other"}
    status, info = await caller.call("POST", f"{ROOT}/chat/undo")
    assert (status, info["revision"], info["spec"]["parameters"]) == (200, 3, {"model": "m"})
    await eventually(lambda: rolled(3))
    assert [it["revision"] for it in info["history"]] == [1, 2, 3]
    assert (await caller.call("POST", f"{ROOT}/chat/undo", {"revision": 77}))[0] == 422


async def test_bad_input_is_refused_and_names_its_member(caller: Caller, agent: FakeAgent) -> None:
    del agent
    for body, field_named in (
        ({"template": "mock", "parameters": {"model": 5}}, "parameters.model"),
        ({"template": "mock", "parameters": {}}, "parameters.model"),
        ({"template": "mock", "parameters": {"model": "m", "start_delay_s": -1}}, "parameters.start_delay_s"),
        ({"template": "mock", "parameters": {"model": "m", "what": "x"}}, "parameters.what"),
        ({"template": "nope"}, "template"),
        (spec(replicas={"min": 3, "max": 1}), "replicas"),
        (spec(wrong=1), "wrong"),
        ({"request": {"server_mode": "what"}}, "request.server_mode"),
    ):
        status, answer = await caller.call("PUT", f"{ROOT}/chat", body)
        assert (status, answer.get("field")) == (422, field_named), answer
    assert "there are: mock" in (await caller.call("PUT", f"{ROOT}/chat", {"template": "nope"}))[1]["error"]
    assert (await caller.call("PUT", f"{ROOT}/-x", spec()))[0] == 422
    assert (await caller.call("GET", f"{ROOT}/chat"))[0] == 404
    await caller.put("one", spec(model="same"))
    status, answer = await caller.call("PUT", f"{ROOT}/two", spec(model="same"))
    assert (status, answer["field"]) == (409, "model")
    status, answer = await caller.call("PUT", f"{ROOT}/one", spec(idle_s=5), **{"If-Match": "7"})
    assert (status, answer["version"]) == (412, 1)
    assert (await caller.call("PUT", f"{ROOT}/one", spec(model="same", idle_s=5), **{"If-Match": '"1"'}))[0] == 200
    large = await caller.put("large", spec(accelerators=9))
    assert large["warnings"] == ["needs 9 mock, the largest free node has 4"]
    await eventually(lambda: phase(caller, "large", "unschedulable"))
    assert (await caller.demand("large"))["large"]["hold"] is False


async def test_refused_starts_wait_ever_longer_and_say_why_C20(caller: Caller, agent: FakeAgent) -> None:
    agent.refuse = "no disk"
    await caller.put("chat", spec())
    await eventually(lambda: phase(caller, "chat", "failing"))
    assert "no disk" in (await caller.info("chat"))["reason"]
    await asyncio.sleep(4)
    assert len(agent.bodies) <= 4
    agent.refuse = ""
    await eventually(lambda: phase(caller, "chat", "ready", 1), 30)


async def test_events_tell_of_every_change_until_it_is_gone(caller: Caller, agent: FakeAgent) -> None:
    del agent
    await caller.put("chat", spec())
    phases: list[str] = []
    async with caller.session.get(f"{caller.url}{ROOT}/chat/events") as stream:
        async for line in stream.content:
            if line.startswith(b'data: {"'):
                phases.append(json.loads(line[6:])["phase"])
                if phases[-1] == "ready":
                    await caller.call("DELETE", f"{ROOT}/chat")
            if line.startswith(b"event: end"):
                break
    assert "ready" in phases
    assert phases[-1] in ("stopping", "ready")


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.3, 1.5])
async def test_a_registry_that_is_killed_starts_nothing_twice_C17(tmp_path: Path, delay_s: float) -> None:
    port = str(free_port())
    agent = FakeAgent([f"http://127.0.0.1:{port}"], answer_delay_s=0.5, start_s=0.5)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session, agent.serving():
        caller = Caller(agent.registries[0], session)
        with running(tmp_path, "--port", port):
            await eventually(lambda: known(caller, "n1"))
            await caller.put("chat", spec(replicas={"min": 2, "max": 2}))
            await asyncio.sleep(delay_s)
        with running(tmp_path, "--port", port):
            await eventually(lambda: phase(caller, "chat", "ready", 2))
            await asyncio.sleep(1.5)
            assert len(agent.live()) == 2
            assert set(agent.made.values()) == {1}
            await caller.call("DELETE", f"{ROOT}/chat")
            await asyncio.sleep(delay_s)
        with running(tmp_path, "--port", port):

            async def gone() -> bool:
                return (await caller.call("GET", f"{ROOT}/chat"))[0] == 404

            await eventually(gone)
            assert agent.live() == []


async def test_a_node_that_comes_back_is_tidied_up_C19(caller: Caller, agent: FakeAgent) -> None:
    async with FakeAgent([caller.url], node="n2").serving() as other:
        await eventually(lambda: known(caller, "n2"))
        await caller.put("chat", spec(replicas={"min": 2, "max": 2}, placement={"spread": True}))
        await eventually(lambda: phase(caller, "chat", "ready", 2))
        assert len(other.live()) == 1
        other.silent = True

        async def elsewhere() -> bool:
            return len(agent.live()) == 2

        await eventually(elsewhere)
        other.silent = False

        async def tidy() -> bool:
            return not other.live()

        await eventually(tidy)
        await asyncio.sleep(1.5)
        assert len(agent.live()) == 2


async def test_three_registries_over_etcd_whose_leader_is_killed_C17(etcd: Etcd, tmp_path: Path) -> None:
    ports = [str(free_port()) for _ in range(3)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    agent = FakeAgent(urls, answer_delay_s=0.3, start_s=0.5)
    store = ("--store", f"etcd://{etcd.endpoint}")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session, agent.serving():
        callers = [Caller(url, session) for url in urls]
        with ExitStack() as stack:
            processes = []
            for port in ports:
                (tmp_path / port).mkdir()
                processes.append(stack.enter_context(running(tmp_path / port, *store, "--port", port))[0])
            await eventually(lambda: known(callers[2], "n1"))
            await callers[2].put("chat", spec(replicas={"min": 2, "max": 2}))
            await callers[1].put("cold", spec(replicas={"min": 0, "max": 1}))
            processes[0].kill()
            processes[0].wait()
            for one in callers[1:]:
                await eventually(lambda one=one: phase(one, "chat", "ready", 2), 30)  # type: ignore[misc]
            for _ in range(40):  # one of the two does not lead, and passes on what it hears
                for one in callers[1:]:
                    await one.demand("cold", waiting=1)
                if await phase(callers[1], "cold", "ready") and await phase(callers[2], "cold", "ready"):
                    break
                await asyncio.sleep(0.25)
            else:
                raise AssertionError("the cold model never starts")
            assert len(agent.live()) == 3
            assert set(agent.made.values()) == {1}


async def test_a_drained_node_gives_its_replicas_to_another_that_is_ready_first(
    caller: Caller, agent: FakeAgent
) -> None:
    await caller.put("chat", spec())
    await eventually(lambda: phase(caller, "chat", "ready", 1))
    async with FakeAgent([caller.url], node="n2").serving() as other:
        await eventually(lambda: known(caller, "n2"))
        assert (await caller.call("POST", "/api/v1/nodes/n1/drain"))[0] == 200

        async def moved() -> bool:
            ready = [it for one in (agent, other) for it in one.live() if it["status"] == "ready"]
            assert ready, "nobody serves"
            return not agent.live() and len(other.live()) == 1

        await eventually(moved)
        await asyncio.sleep(1.2)
        assert (agent.live(), len(other.live())) == ([], 1)
