"""A router's processes, and a registry of ours that starts what is asked for: cold starts as clients see them."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from common.wire.deployment import DEPLOYMENT_KEY, Demand, DemandAnswer, DeploymentPhase, ModelState
from common.wire.record import Beat, Delete, Put, ServiceRecord, Snapshot
from tests.ports import free_port
from tests.router.fakes import SSE_HEAD, Call, FakeReplica, request
from tests.router.test_process import Node

pytestmark = pytest.mark.e2e
MANY = 1000
PHASES = {"cold": DeploymentPhase.COLD, "starting": DeploymentPhase.STARTING, "ready": DeploymentPhase.READY}
CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
CONTENT = {**CHUNK, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "hi"}, "finish_reason": None}]}
END = {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
WHOLE = {
    **CHUNK,
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
}
STREAM = json.dumps({"model": "m", "messages": [], "stream": True}).encode()


async def answer(call: Call) -> None:
    if call.line.startswith(b"GET"):
        body = b'{"object":"list","data":[{"id":"m"}]}'
    elif json.loads(call.body).get("stream"):
        events = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in (CONTENT, END)) + b"data: [DONE]\n\n"
        await call.send(SSE_HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events))
        return
    else:
        body = json.dumps(WHOLE).encode()
    await call.send(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )


class Starter:
    """A registry with one deployment: the first demand starts its replica, which is ready when the test says so."""

    def __init__(self, replica_port: int) -> None:
        self.replica_port = replica_port
        self.starts: list[float] = []
        self.demands: list[Demand] = []
        self.lines: list[asyncio.Queue[Any]] = []
        self.eta_s = 8.0
        self.ready_at = 0.0
        self.deployed = True
        self._revision = 1
        self._server: TestServer | None = None

    async def start(self, port: int) -> None:
        app = web.Application()
        app.router.add_get("/v1/watch", self._watch)
        app.router.add_post("/v1/routers/{name}/demand", self._demand)
        app.router.add_post("/v1/routers/{name}/failing", self._demand)
        self._server = TestServer(app, port=port)
        await self._server.start_server()

    async def stop(self) -> None:
        if self._server is not None:
            for queue in self.lines:
                queue.put_nowait(None)
            await self._server.close()
            self._server = None

    def become_ready(self) -> None:
        self.ready_at = time.monotonic()
        self._revision += 1
        for queue in self.lines:
            queue.put_nowait(Put("e", self._revision, self._record()))

    def become_cold(self) -> None:
        self.ready_at = 0.0
        self.starts.clear()
        self._revision += 1
        for queue in self.lines:
            queue.put_nowait(Delete("e", self._revision, "r", "deregistered"))

    def _record(self) -> ServiceRecord:
        metadata = {"type": "openai-api", "models": ["m"], DEPLOYMENT_KEY: "d"}
        url = f"http://127.0.0.1:{self.replica_port}"
        return ServiceRecord(name="r", host="127.0.0.1", port=self.replica_port, url=url, metadata=metadata)

    async def _watch(self, request_: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request_)
        services = [self._record()] if self.ready_at else []
        queue: asyncio.Queue[Any] = asyncio.Queue()
        queue.put_nowait(Snapshot("e", self._revision, services))
        self.lines.append(queue)
        while True:
            try:
                line = await asyncio.wait_for(queue.get(), 5)
            except TimeoutError:
                line = Beat("e", self._revision)
            if line is None:
                self.lines.remove(queue)
                return response
            await response.write(msgspec.json.encode(line) + b"\n")

    async def _demand(self, request_: web.Request) -> web.Response:
        demand = msgspec.json.decode(await request_.read(), type=Demand)
        self.demands.append(demand)
        if any(one.waiting for one in demand.models.values()) and not self.starts and not self.ready_at:
            self.starts.append(time.monotonic())
        phase = "ready" if self.ready_at else "starting" if self.starts else "cold"
        state = ModelState(model="m", deployment="d", phase=PHASES[phase])
        if self.starts and not self.ready_at:
            state = msgspec.structs.replace(state, stage="loading", percent=41, eta_s=self.eta_s)
        answer_ = DemandAnswer(models=[state] if self.deployed else [])
        return web.Response(body=msgspec.json.encode(answer_), content_type="application/json")


@pytest.fixture
async def starter() -> AsyncIterator[Starter]:
    async with FakeReplica(answer) as replica:
        made = Starter(replica.port)
        yield made
        await made.stop()


@pytest.fixture
async def node(tmp_path: Path, starter: Starter) -> AsyncIterator[Node]:
    async with aiohttp.ClientSession() as http:
        node = Node(tmp_path, http)
        node.registry_port = free_port()
        await starter.start(node.registry_port)
        yield node


async def until(check: Callable[[], bool], wait_s: float = 20) -> None:
    async with asyncio.timeout(wait_s):
        while not check():
            await asyncio.sleep(0.01)


async def listed(node: Node) -> dict[str, str | None]:
    return {one["id"]: one.get("status") for one in (await node.get("/v1/models"))["data"]}


async def is_cold(node: Node) -> bool:
    return await listed(node) == {"m": "cold"}


async def stream(node: Node) -> tuple[float, bytes]:
    """When the first event came, and everything."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.router_port)
    try:
        writer.write(request(STREAM))
        raw, first_at = b"", 0.0
        while data := await reader.read(65536):
            raw += data
            if not first_at and b"data:" in raw:
                first_at = time.monotonic()
    finally:
        writer.close()
    return first_at, raw


async def test_thousand_streams_wait_for_one_start_and_all_go_at_once(node: Node, starter: Starter) -> None:
    async with node.router():
        await node.until(lambda: is_cold(node))
        streams = [asyncio.ensure_future(stream(node)) for _ in range(MANY)]
        await until(lambda: bool(starter.starts))
        await until(lambda: starter.demands[-1].models["m"].waiting == MANY)
        assert await listed(node) == {"m": "starting"}
        await asyncio.sleep(2)
        assert len(starter.starts) == 1
        starter.become_ready()
        answers = await asyncio.gather(*streams)
        last_s = max(first_at for first_at, _ in answers) - starter.ready_at
        for _, raw in answers:
            assert raw.startswith(b"HTTP/1.1 200")
            assert b": starting phase=loading 41% eta=8s\n" in raw
            assert b"data: [DONE]" in raw
        assert last_s < 5  # here clients and replica are one slow process; bench/router/cold.py measures
        await until(lambda: not starter.demands[-1].models["m"].waiting)
        await until(lambda: starter.demands[-1].models["m"].requests == MANY)
        assert await listed(node) == {"m": None}


async def test_first_request_is_told_at_once_and_one_that_left_is_not_waited_for(node: Node, starter: Starter) -> None:
    async with node.router("--workers", "1"):
        await node.until(lambda: is_cold(node))
        await until(lambda: bool(starter.demands))
        seen = len(starter.demands)
        await until(lambda: len(starter.demands) > seen)
        began = time.monotonic()  # just after a demand: the next usual one is a second away
        one = asyncio.ensure_future(stream(node))
        await until(lambda: bool(starter.starts))
        assert starter.starts[0] - began < 0.5
        one.cancel()
        await until(lambda: "m" not in starter.demands[-1].models)


async def test_official_client_streams_through_a_cold_start(node: Node, starter: Starter) -> None:
    async with node.router():
        await node.until(lambda: is_cold(node))
        async with openai.AsyncOpenAI(base_url=f"{node.url}/v1", api_key="-", max_retries=0) as client:
            models = [one async for one in client.models.list()]
            assert [(one.id, one.model_extra) for one in models] == [("m", {"status": "cold"})]

            async def read() -> str:
                chunks = await client.chat.completions.create(model="m", messages=[], stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            reading = asyncio.ensure_future(read())
            await until(lambda: bool(starter.starts))
            await asyncio.sleep(3)
            starter.become_ready()
            assert await reading == "hi"
            # The router's next word may still be that somebody waits: it would start the model again.
            await until(lambda: not any(one.waiting for one in starter.demands[-1].models.values()))
            starter.become_cold()
            await node.until(lambda: is_cold(node))
            asking = asyncio.ensure_future(client.chat.completions.with_raw_response.create(model="m", messages=[]))
            await until(lambda: bool(starter.starts))
            starter.become_ready()
            answered = await asking
            assert answered.parse().choices[0].message.content == "hi"
            assert int(answered.headers["x-queue-ms"]) >= 0


async def test_official_client_asks_again_after_the_hold_and_is_served(node: Node, starter: Starter) -> None:
    starter.eta_s = 1.0
    async with node.router("--hold-s", "1"):
        await node.until(lambda: is_cold(node))
        async with openai.AsyncOpenAI(base_url=f"{node.url}/v1", api_key="-", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(model="m", messages=[])
            assert isinstance(caught.value.body, dict)
            assert {key: caught.value.body[key] for key in ("code", "phase", "percent", "eta_s", "deployment")} == {
                "code": "model_starting",
                "phase": "starting",
                "percent": 41,
                "eta_s": 1.0,
                "deployment": "d",
            }
            assert caught.value.response.headers["retry-after"] == "1"
            asking = asyncio.ensure_future(
                client.with_options(max_retries=3).chat.completions.create(model="m", messages=[])
            )
            await asyncio.sleep(2.5)
            starter.become_ready()
            assert (await asking).choices[0].message.content == "hi"


async def test_registry_that_dies_while_requests_wait_is_told_of_and_found_again(node: Node, starter: Starter) -> None:
    async with node.router():
        await node.until(lambda: is_cold(node))
        streams = [asyncio.ensure_future(stream(node)) for _ in range(20)]
        await until(lambda: bool(starter.starts))
        await asyncio.sleep(1)
        await starter.stop()
        await asyncio.sleep(3)
        late = asyncio.ensure_future(stream(node))  # asked while nobody could start anything
        await asyncio.sleep(1)
        assert not any(one.done() for one in (*streams, late))
        await starter.start(node.registry_port)
        await until(lambda: bool(starter.lines), 30)
        starter.become_ready()
        for _, raw in [await one for one in (*streams, late)]:
            assert b"registry=lost\n" in raw
            assert b"data: [DONE]" in raw


async def test_deployment_that_is_deleted_is_not_waited_for(node: Node, starter: Starter) -> None:
    async with node.router():
        await node.until(lambda: is_cold(node))
        asking = asyncio.ensure_future(node.chat())
        await until(lambda: bool(starter.starts))
        starter.deployed = False
        assert await asyncio.wait_for(asking, 5) == 503
        assert await listed(node) == {}


async def test_workers_that_are_replaced_keep_what_they_hold(node: Node, starter: Starter) -> None:
    async with node.router() as router:
        await node.until(lambda: is_cold(node))
        streams = [asyncio.ensure_future(stream(node)) for _ in range(20)]
        await until(lambda: bool(starter.starts) and starter.demands[-1].models["m"].waiting == len(streams))
        router.send_signal(signal.SIGHUP)
        log = node.folder / "router.log"
        await until(lambda: log.read_text().count("worker.rolled") == 2)
        assert starter.demands[-1].models["m"].waiting == len(streams)
        starter.become_ready()
        assert all(b"data: [DONE]" in raw for _, raw in await asyncio.gather(*streams))
