"""vLLM's own WebSocket, `/v1/realtime`, through the router: the same events, an end that the engine sees, its death."""

import asyncio
import base64
import json
import math
import os
import re
import signal
import struct
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.babysitter.real import Node, running, until
from tests.engines import vllm
from tests.engines.harness import START_S
from tests.router.fakes import Plane

pytestmark = [pytest.mark.world, pytest.mark.timeout(1200)]
SOUND = struct.pack("<32000h", *(int(8000 * math.sin(at / 20)) for at in range(32000)))
"""Two seconds."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running(tmp_path_factory.mktemp("vllm")) as node:
        node.backend = vllm.backend(node.port, "--load-format", "dummy", "--max-model-len", "2048", kind="speech")
        node.backend["env"] = {**vllm.ENVIRONMENT, "PYTHONPATH": str(vllm.model("speech") / "site")}
        node.start()
        node.ready(START_S)
        yield node


def session(port: int, query: str = "?model=tiny") -> connect:
    return connect(f"ws://127.0.0.1:{port}/v1/realtime{query}", proxy=None)


async def begin(socket: ClientConnection) -> None:
    assert (await said(socket))["type"] == "session.created"
    await tell(socket, "session.update", model="tiny")
    await tell(socket, "input_audio_buffer.commit")
    await tell(socket, "input_audio_buffer.append", audio=base64.b64encode(SOUND).decode())


async def tell(socket: ClientConnection, kind: str, **members: Any) -> None:
    await socket.send(json.dumps({"type": kind, **members}))


async def said(socket: ClientConnection) -> dict[str, Any]:
    return dict(json.loads(await asyncio.wait_for(socket.recv(), 120)))


async def transcribed(port: int) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    async with session(port) as socket:
        await begin(socket)
        await tell(socket, "input_audio_buffer.commit", final=True)
        while not events or events[-1]["type"] == "transcription.delta":
            events.append(await said(socket))
    return events


async def open_sessions(port: int) -> float:
    async with aiohttp.request("GET", f"http://127.0.0.1:{port}/metrics") as answer:
        found = re.search(r"^vllm:websocket_connections_active (\S+)$", await answer.text(), re.MULTILINE)
    assert found is not None
    return float(found[1])


async def test_vllms_events_are_the_same_through_the_router_W62(plane: Plane, node: Node) -> None:
    plane.route(node.port, models=("tiny",))
    direct, routed = await transcribed(node.port), await transcribed(plane.port)
    assert routed[-1]["type"] == "transcription.done"
    assert routed[-1]["usage"]["prompt_tokens"] > 0
    assert routed == direct


async def test_vllm_sees_within_a_second_that_a_client_vanished_D32(plane: Plane, node: Node) -> None:
    plane.route(node.port, models=("tiny",))
    async with session(plane.port) as stays, session(plane.port) as vanishes:
        for socket in (stays, vanishes):
            await begin(socket)
        assert (plane.in_flight(), await open_sessions(node.port)) == (2, 2.0)
        vanishes.transport.abort()
        async with asyncio.timeout(1):
            while (plane.in_flight(), await open_sessions(node.port)) != (1, 1.0):
                await asyncio.sleep(0.02)


async def test_a_client_hears_of_vllms_death_and_of_its_stop_D32(plane: Plane, node: Node) -> None:
    plane.route(node.port, models=("tiny",))
    async with session(plane.port) as socket:
        await begin(socket)
        for pid in node.processes():
            os.kill(pid, signal.SIGKILL)
        await asyncio.wait_for(socket.wait_closed(), 5)
        assert socket.close_code == 1011
    await asyncio.to_thread(until, "started again", lambda: node.report()["restart_count"] == 1)
    await asyncio.to_thread(node.ready, START_S)
    async with session(plane.port) as socket:
        await begin(socket)
        os.kill(node.report()["replica_pid"], signal.SIGTERM)
        await asyncio.wait_for(socket.wait_closed(), 60)
        assert socket.close_code in (1011, 1012)  # 1012 is uvicorn's own
