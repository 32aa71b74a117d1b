"""Requests about a stored response go to the replica that made it, whoever passed it on."""

import asyncio
import hashlib
import json
from typing import Any

import openai
import pytest

from router.keys import Key
from router.model import Eligibility
from router.policy.models import ModelRule, ModelRules
from tests.router.conftest import MakePlane
from tests.router.fakes import SSE_HEAD, Call, FakeReplica, Plane, Reply, plain

NOT_FOUND = b'{"error":{"message":"Response with id not found.","type":"invalid_request_error","code":404}}'


class Store:
    """A replica that stores its responses, as engines do: in memory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kept: list[str] = []
        self.silent = False
        self.asked: list[str] = []
        """`GET resp_x`, `POST` …"""

    async def __call__(self, call: Call) -> None:
        method, path, _ = call.line.decode().split()
        self.asked.append(f"{method} {path}")
        if self.silent:
            await call.until_gone()
            return
        if method == "POST" and path.endswith("/responses"):
            await self.create(call)
            return
        response = path.split("?")[0].split("/responses/")[1].split("/")[0]
        if response in self.kept:
            await call.send(plain(json.dumps({**said(response), "made_by": self.name}).encode()))
        else:
            await call.send(plain(NOT_FOUND, status=b"404 Not Found"))

    async def create(self, call: Call) -> None:
        asked = json.loads(call.body)
        previous = asked.get("previous_response_id")
        if previous is not None and previous not in self.kept:
            await call.send(plain(NOT_FOUND, status=b"404 Not Found"))
            return
        response = f"resp_{self.name}{len(self.kept)}"
        self.kept.append(response)
        if not asked.get("stream"):
            await call.send(plain(json.dumps(said(response, previous)).encode()))
            return
        await call.send(SSE_HEAD)
        for kind in ("response.created", "response.completed"):
            data = json.dumps({"type": kind, "sequence_number": 0, "response": said(response, previous)})
            event = f"event: {kind}\ndata: {data}\n\n".encode()
            await call.send(b"%x\r\n%b\r\n" % (len(event), event))
            await asyncio.sleep(0.01)
        await call.send(b"0\r\n\r\n")


def said(response: str, previous: str | None = None) -> dict[str, Any]:
    return {
        "id": response,
        "object": "response",
        "created_at": 1,
        "model": "m",
        "output": [],
        "previous_response_id": previous,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "status": "completed",
    }


async def fleet(plane: Plane, names: str = "abc") -> tuple[list[Store], list[FakeReplica]]:
    stores = [Store(name) for name in names]
    replicas = [await plane.add(store) for store in stores]
    plane.route(*replicas)
    return stores, replicas


async def create(plane: Plane, previous: str | None = None, **more: Any) -> Reply:
    body = {"model": "m", "input": "hi", "previous_response_id": previous, **more}
    return await plane.post(json.dumps(body).encode(), "/v1/responses")


async def ask(plane: Plane, method: str, path: str, headers: str = "") -> Reply:
    return await plane.send(f"{method} {path} HTTP/1.1\r\nhost: r\r\nconnection: close\r\n{headers}\r\n".encode())


def id_of(reply: Reply) -> str:
    return str(json.loads(reply.body)["id"])


def fault(reply: Reply) -> tuple[int, str, str]:
    error = json.loads(reply.body)["error"]
    return reply.status, error["code"], error["message"]


@pytest.mark.parametrize("form", ["whole", "stream"])
async def test_a_conversation_stays_with_the_replica_that_made_its_responses(plane: Plane, form: str) -> None:
    stores, _ = await fleet(plane)
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{plane.port}/v1", api_key="k", max_retries=0) as client:
        made_by = set()
        for _ in range(6):
            previous = ""
            for _ in range(3):
                if form == "stream":
                    events = [event async for event in await client.responses.create(
                        model="m", input="hi", previous_response_id=previous or None, stream=True
                    )]  # fmt: skip
                    previous = events[-1].response.id  # type: ignore[union-attr]  # the last one has it
                else:
                    answer = await client.responses.create(model="m", input="hi", previous_response_id=previous or None)
                    previous = answer.id
            made_by.add(previous[5])
    assert len(made_by) > 1
    assert not [asked for store in stores for asked in store.asked if asked.startswith("GET")]  # nobody had to be asked


async def test_a_response_is_read_cancelled_and_deleted_where_it_is(plane: Plane) -> None:
    stores, _ = await fleet(plane)
    response = id_of(await create(plane))
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{plane.port}/v1", api_key="k", max_retries=0) as client:
        assert (await client.responses.retrieve(response)).id == response
        assert (await client.responses.cancel(response)).id == response
        await client.responses.input_items.list(response)
        await client.responses.delete(response)
    assert (await ask(plane, "GET", f"/responses/{response}?include[]=a")).status == 200
    [owner] = [store for store in stores if store.asked]
    assert owner.asked[1:] == [
        f"GET /v1/responses/{response}",
        f"POST /v1/responses/{response}/cancel",
        f"GET /v1/responses/{response}/input_items",
        f"DELETE /v1/responses/{response}",
        f"GET /responses/{response}?include[]=a",
    ]


async def test_a_replica_gets_the_form_of_path_that_it_serves(plane: Plane) -> None:
    store = Store("a")
    plane.route(await plane.add(store), api_prefix="")
    store.kept.append("resp_1")
    for path in ("/v1/responses/resp_1", "/responses/resp_1", "//v1/responses/resp_1/"):
        assert (await ask(plane, "GET", path)).status == 200
    assert store.asked == ["GET /responses/resp_1"] * 3


async def test_another_router_asks_the_replicas_once_and_remembers_D34(planes: MakePlane) -> None:
    one, other = await planes(), await planes()
    stores, replicas = await fleet(one)
    other.route(*replicas)
    response = id_of(await create(one))
    [owner] = [store for store in stores if store.asked]
    for _ in range(3):
        reply = await create(other, response)
        assert (reply.status, id_of(reply)[5]) == (200, owner.name)
    looked = [asked for store in stores for asked in store.asked if asked.startswith("GET")]
    assert looked[0] == f"GET /v1/responses/{response}"
    assert 1 <= len(looked) <= 3


async def test_what_nobody_has_is_404_of_our_own_with_what_to_do(plane: Plane) -> None:
    stores, _ = await fleet(plane)
    for reply in (await create(plane, "resp_x"), await ask(plane, "GET", "/v1/responses/resp_x")):
        status, code, message = fault(reply)
        assert (status, code) == (404, "response_not_found")
        assert "'resp_x': no replica has it" in message
        assert "send the whole conversation in 'input'" in message
    assert not any(asked.startswith("POST") for store in stores for asked in store.asked)
    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{plane.port}/v1", api_key="k")
    with pytest.raises(openai.NotFoundError, match="no replica has it"):
        await client.responses.create(model="m", input="hi", previous_response_id="resp_x")
    await client.close()


async def test_a_replica_that_is_gone_or_dead_or_leaves_is_404_of_our_own_D34(plane: Plane) -> None:
    stores, replicas = await fleet(plane)
    response = id_of(await create(plane))
    at = next(number for number, store in enumerate(stores) if store.asked)
    plane.route(*replicas, eligibility=Eligibility.DRAINING)
    assert "is leaving" in fault(await create(plane, response))[2]
    assert (await ask(plane, "GET", f"/v1/responses/{response}")).status == 200
    plane.route(*replicas)
    await replicas[at].stop()
    for _ in range(2):  # set aside or not
        assert "cannot be reached" in fault(await create(plane, response))[2]
    plane.route(*[replica for number, replica in enumerate(replicas) if number != at])
    assert "no replica has it" in fault(await create(plane, response))[2]
    assert all(len(store.asked) <= 1 for number, store in enumerate(stores) if number != at)


async def test_the_only_replica_speaks_for_itself(plane: Plane) -> None:
    stores, _ = await fleet(plane, "a")
    reply = await create(plane, "resp_x")
    assert (reply.status, reply.body) == (404, NOT_FOUND)
    assert stores[0].asked == ["POST /v1/responses"]
    plane.route()
    assert fault(await create(plane, "resp_x"))[:2] == (503, "model_not_found")
    assert fault(await ask(plane, "GET", "/v1/responses/resp_x"))[:2] == (404, "response_not_found")


async def test_replicas_that_say_nothing_are_503_and_a_client_that_goes_ends_the_search_D34(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, _ = await fleet(plane)
    for store in stores:
        store.silent = True
    _, writer = await plane.open()
    writer.write(b"GET /v1/responses/resp_x HTTP/1.1\r\nhost: r\r\n\r\n")
    async with asyncio.timeout(5):
        while not all(store.asked for store in stores):
            await asyncio.sleep(0.01)
    writer.close()
    async with asyncio.timeout(2):
        while plane.engine.exchanges:
            await asyncio.sleep(0.01)
    monkeypatch.setattr("router.proxy.owner_search.SEARCH_S", 0.3)
    status, code, _ = fault(await create(plane, "resp_x"))
    assert (status, code) == (503, "response_owner_unknown")
    stores[0].silent = False
    stores[0].kept.append("resp_x")
    assert (await create(plane, "resp_x")).status == 200


async def test_only_responses_go_on_from_a_response(plane: Plane) -> None:
    async def answer(call: Call) -> None:
        await call.send(plain(b'{"ok":1}'))

    replicas = [await plane.add(answer) for _ in range(2)]
    plane.route(*replicas)
    asked: list[tuple[str, Any]] = [("/v1/chat/completions", "resp_x"), ("/v1/responses", None), ("/v1/responses", 7)]
    for path, previous in (*asked, ("/v1/responses", "no id/../x"), ("/v1/responses", "")):
        body = json.dumps({"model": "m", "previous_response_id": previous}).encode()
        assert (await plane.post(body, path)).status == 200
    assert all(call.line.startswith(b"POST") for replica in replicas for call in replica.calls)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses/compact",
        "/v1/responses/resp_",
        "/v1/responses/response",
        "/v1/responses/resp_1/files",
        "/v1/responses/resp_1/../x",
        "/v1/responses/resp_%2e",
        "/v1/responses/resp_1\x0b",
        "/v1/responses/resp_" + "a" * 300,
        "/v2/responses/resp_1",
    ],
)
async def test_no_other_path_leads_to_a_replica(plane: Plane, path: str) -> None:
    stores, _ = await fleet(plane, "a")
    assert (await ask(plane, "GET", path)).status in (400, 404)
    assert not stores[0].asked


@pytest.mark.parametrize(
    ("method", "rest", "allowed"),
    [("POST", "", "GET, DELETE"), ("GET", "/cancel", "POST"), ("DELETE", "/input_items", "GET")],
)
async def test_another_method_is_refused(plane: Plane, method: str, rest: str, allowed: str) -> None:
    stores, _ = await fleet(plane, "a")
    reply = await ask(plane, method, f"/v1/responses/resp_1{rest}")
    assert (reply.status, reply.header("allow")) == (405, allowed)
    assert not stores[0].asked


async def test_an_alias_leads_to_the_owners_model(planes: MakePlane) -> None:
    plane = await planes(rules=ModelRules(rules={"both": ModelRule(split={"a": 1, "b": 1})}))
    stores = [Store("a"), Store("b")]
    replicas = [await plane.add(store) for store in stores]
    endpoints = [plane.route(*replicas, models=(name,))[number] for number, name in enumerate("ab")]
    plane.engine.set_table(type(plane.engine.table).of(9, tuple(endpoints)))
    made = [id_of(await create(plane, model="both")) for _ in range(8)]
    for response in made:
        assert id_of(await create(plane, response, model="both"))[5] == response[5]
    of_a = next(response for response in made if response[5] == "a")
    assert fault(await create(plane, of_a, model="b"))[:2] == (404, "response_not_found")


async def test_a_key_sees_responses_of_its_models_only(plane: Plane) -> None:
    stores, replicas = await fleet(plane, "ab")
    endpoints = [plane.route(*replicas, models=(name,))[number] for number, name in enumerate("ab")]
    plane.engine.set_table(type(plane.engine.table).of(9, tuple(endpoints)))
    plane.engine.set_keys((Key("team", hashlib.sha256(b"secret").hexdigest(), models=("a",)),))
    for store in stores:
        store.kept.append(f"resp_{store.name}")
    shown = "authorization: Bearer secret\r\n"
    assert (await ask(plane, "GET", "/v1/responses/resp_a", shown)).status == 200
    assert (await ask(plane, "GET", "/v1/responses/resp_b", shown)).status == 404
    assert not stores[1].asked
    assert (await ask(plane, "GET", "/v1/responses/resp_a")).status == 401
