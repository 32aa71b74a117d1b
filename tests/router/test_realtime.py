"""WebSockets through the router, with real clients (`websockets`, aiohttp) and real servers (`websockets`, uvicorn)."""

import asyncio
import base64
import contextlib
import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from fastapi import FastAPI, WebSocket
from openai import AsyncOpenAI
from starlette.websockets import WebSocketDisconnect
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from router.counters import BYTES_IN, BYTES_OUT, IN_FLIGHT, OUTCOMES, AttemptOutcome
from router.keys import Key
from router.model import Eligibility, Table
from router.policy.models import ModelRule, ModelRules
from tests.router.conftest import MakePlane
from tests.router.fakes import Call, Plane, plain, read_reply
from tests.router.realtime import echo, library_server, talk_to, url, uvicorn_server

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
PROOF = base64.b64encode(hashlib.sha1(KEY + GUID).digest())  # noqa: S324 - as RFC 6455 has it
ASK = b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: " + KEY
HANDSHAKE = b"GET /v1/realtime?model=m HTTP/1.1\r\nhost: r\r\n" + ASK + b"\r\n\r\n"
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-accept: " + PROOF + b"\r\n\r\n"
)


async def until(what: Callable[[], bool], wait_s: float = 5.0) -> None:
    async with asyncio.timeout(wait_s):
        while not what():
            await asyncio.sleep(0.01)


def outcomes(plane: Plane, slot: int = 0) -> dict[str, int]:
    counters = plane.engine.counters
    counters.flush()
    counts = {outcome.name: counters.total(slot, OUTCOMES + outcome) for outcome in AttemptOutcome}
    return {name: count for name, count in counts.items() if count}


async def closed(client: ClientConnection) -> tuple[int | None, str | None]:
    await asyncio.wait_for(client.wait_closed(), 15)
    return client.close_code, client.close_reason


# -- what passes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/realtime", "/realtime"])
async def test_messages_pass_both_ways_and_are_counted_W62(planes: MakePlane, path: str) -> None:
    plane = await planes(access_log_sample=1.0)
    async with library_server(echo) as port:
        (endpoint,) = plane.route(port)
        with capture_logs() as lines:
            async with connect(url(plane, path=path), proxy=None) as client:
                for message in ("hello", b"\x00\x01", "x" * 300_000, ""):
                    await client.send(message)
                    assert await client.recv() == message
                assert plane.in_flight() == 1
            await until(lambda: plane.in_flight() == 0)
            await until(lambda: any(line["event"] == "request" for line in lines))
    line = next(line for line in lines if line["event"] == "request")
    assert (line["path"], line["model"], line["status"], line["replica"]) == (path, "m", 101, "r0")
    counters = plane.engine.counters
    counters.flush()
    passed = counters.total(endpoint.slot, BYTES_IN), counters.total(endpoint.slot, BYTES_OUT)
    assert (line["request_bytes"], line["response_bytes"]) == passed
    assert passed[0] > 10  # compressed: `x` 300,000 times is little
    assert line["duration_ms"] > 0
    assert outcomes(plane) == {"OK": 1}


async def test_subprotocols_and_extensions_are_agreed_end_to_end_W62(plane: Plane) -> None:
    heads = []

    async def handler(socket: ServerConnection) -> None:
        assert socket.request is not None
        heads.append(socket.request)
        await echo(socket)

    async with library_server(handler, subprotocols=["realtime"]) as port, library_server(handler) as plain_port:
        plane.route(port)
        headers = {"OpenAI-Beta": "realtime=v1", "Authorization": "Bearer mine", "X-Private": "no"}
        async with talk_to(plane, subprotocols=["other", "realtime"], additional_headers=headers) as client:
            assert client.subprotocol == "realtime"
            assert [extension.name for extension in client.protocol.extensions] == ["permessage-deflate"]
            assert client.response is not None
            assert client.response.headers["x-request-id"]
            await client.send("x" * 1000)
            assert await client.recv() == "x" * 1000
        plane.route(plain_port)
        async with talk_to(plane, compression=None) as client:
            assert (client.subprotocol, client.protocol.extensions) == (None, [])
            await client.send("plain")
            assert await client.recv() == "plain"
    assert heads[0].path == "/v1/realtime?model=m"
    assert heads[0].headers["host"] == f"127.0.0.1:{port}"
    assert heads[0].headers["openai-beta"] == "realtime=v1"
    assert heads[0].headers["authorization"] == "Bearer mine"  # without keys of its own the router passes it on
    assert heads[0].headers["x-forwarded-for"] == "127.0.0.1"
    assert "x-private" not in heads[0].headers


async def test_aiohttp_and_uvicorn_understand_each_other_through_the_router_W62(plane: Plane) -> None:
    app = FastAPI()

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_json({"type": "session.created"})
        if await socket.receive_text() == "bye":
            await socket.close(4000, "as you say")

    async with uvicorn_server(app) as port, aiohttp.ClientSession() as http:
        plane.route(port)
        async with http.ws_connect(url(plane), compress=15) as client:
            assert (await client.receive_json())["type"] == "session.created"
            await client.send_str("bye")
            last = await client.receive()
            assert (last.type, last.data, last.extra) == (aiohttp.WSMsgType.CLOSE, 4000, "as you say")
        await until(lambda: plane.in_flight() == 0)
    assert outcomes(plane) == {"OK": 1}


async def test_the_clients_close_code_reaches_the_replica_and_its_pings_too_W62(plane: Plane) -> None:
    codes: list[int | None] = []

    async def handler(socket: ServerConnection) -> None:
        await socket.wait_closed()
        codes.append(socket.close_code)

    async with library_server(handler) as port:
        plane.route(port)
        async with talk_to(plane) as client:
            await (await client.ping())
            await client.close(4321, "enough")
        await until(lambda: bool(codes))
    assert codes == [4321]


async def test_a_model_that_is_an_alias_is_another_in_the_query(planes: MakePlane) -> None:
    plane = await planes(rules=ModelRules("cost", {"speech": ModelRule(policy=None, split={"m": 1.0}, fallbacks=())}))
    paths = []

    async def handler(socket: ServerConnection) -> None:
        assert socket.request is not None
        paths.append(socket.request.path)

    async with library_server(handler) as port:
        plane.route(port)
        async with talk_to(plane, "?intent=x&model=speech"):
            pass
    assert paths == ["/v1/realtime?intent=x&model=m"]


async def test_openais_own_client_speaks_with_a_realtime_server_W62(plane: Plane) -> None:
    app, asked = FastAPI(), []

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        asked.append((socket.query_params["model"], socket.headers["authorization"]))
        await socket.accept()
        await socket.send_json({"type": "session.created", "event_id": "1", "session": {"type": "realtime"}})
        update = await socket.receive_json()
        await socket.send_json({"type": "session.updated", "event_id": "2", "session": update["session"]})
        with contextlib.suppress(WebSocketDisconnect):
            await socket.receive_text()

    async with (
        uvicorn_server(app) as port,
        AsyncOpenAI(base_url=f"http://127.0.0.1:{plane.port}/v1", api_key="sk-1", max_retries=0) as client,
    ):
        plane.route(port)
        async with client.realtime.connect(model="m") as session:
            assert (await session.recv()).type == "session.created"
            await session.session.update(session={"type": "realtime", "instructions": "be brief"})
            assert (await session.recv()).type == "session.updated"
        await until(lambda: plane.in_flight() == 0)
    assert asked == [("m", "Bearer sk-1")]


# -- who may -----------------------------------------------------------------------------------------------------------

SECRET = "sk-secret.1"
RING = (Key(name="team", sha256=hashlib.sha256(SECRET.encode()).hexdigest(), models=("m",), requests_per_minute=60.0),)


async def refused(connecting: connect) -> InvalidStatus:
    with pytest.raises(InvalidStatus) as refusal:
        await connecting
    return refusal.value


async def test_keys_are_shown_in_headers_or_as_browsers_can_and_go_no_further(plane: Plane) -> None:
    heads = []

    async def handler(socket: ServerConnection) -> None:
        assert socket.request is not None
        heads.append(socket.request.headers)

    plane.engine.set_keys(RING)
    async with library_server(handler, subprotocols=["realtime"]) as port:
        plane.route(port)
        as_browser: list[Any] = ["realtime", f"openai-insecure-api-key.{SECRET}", "openai-beta.realtime-v1"]
        as_program = {"Authorization": f"Bearer {SECRET}"}
        async with talk_to(plane, additional_headers=as_program, subprotocols=["realtime"]):
            pass
        async with talk_to(plane, subprotocols=as_browser) as client:
            assert client.subprotocol == "realtime"
        for wrong in ([], ["realtime", "openai-insecure-api-key.sk-other"]):
            refusal = await refused(talk_to(plane, subprotocols=wrong or None))
            assert refusal.response.status_code == 401
            assert b"invalid_api_key" in (refusal.response.body or b"")
        plane.route(port, models=("m", "n"))
        assert (await refused(talk_to(plane, "?model=n", subprotocols=as_browser))).response.status_code == 403
    assert len(heads) == 2
    assert not any(SECRET in str(head) for head in heads)
    assert heads[1]["sec-websocket-protocol"] == "realtime, openai-beta.realtime-v1"


async def test_a_replica_with_a_key_of_its_own_gets_that_and_not_the_clients(plane: Plane) -> None:
    heads = []

    async def handler(socket: ServerConnection) -> None:
        assert socket.request is not None
        heads.append(socket.request.headers)

    async with library_server(handler, subprotocols=["realtime"]) as port:
        plane.route(port, authorization="Bearer theirs")
        offered: list[Any] = ["realtime", "openai-insecure-api-key.mine"]
        async with talk_to(plane, subprotocols=offered, additional_headers={"Authorization": "Bearer mine"}):
            pass
    assert heads[0]["authorization"] == "Bearer theirs"
    assert heads[0]["sec-websocket-protocol"] == "realtime"


async def test_pages_of_foreign_origins_may_not_connect_W10(planes: MakePlane) -> None:
    plane = await planes(cors_origins=frozenset({b"https://app.example"}))
    async with library_server(echo, origins=None) as port:
        plane.route(port)
        for origin in ("https://app.example", f"http://127.0.0.1:{plane.port}"):
            async with talk_to(plane, origin=origin) as client:
                await client.send("x")
                assert await client.recv() == "x"
        for origin in ("https://evil.example", "null"):
            refusal = await refused(talk_to(plane, origin=origin))
            assert refusal.response.status_code == 403
            assert b"origin_not_allowed" in (refusal.response.body or b"")
    assert plane.in_flight() == 0


# -- errors before the 101 ----------------------------------------------------------------------------------------------


async def test_a_replica_that_refuses_is_heard_in_its_own_words(plane: Plane) -> None:
    app = FastAPI()

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        await socket.close()

    async with uvicorn_server(app) as port:
        plane.route(port)
        assert (await refused(talk_to(plane))).response.status_code == 403

    async def answer(call: Call) -> None:
        await call.send(plain(b'{"error":"its own"}', status=b"418 Teapot"))

    plane.route(await plane.add(answer))
    refusal = await refused(talk_to(plane))
    assert (refusal.response.status_code, refusal.response.body) == (418, b'{"error":"its own"}')
    assert refusal.response.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [
        ("?model=other", 503, "model_not_found"),
        ("?model=m&model=n", 400, "invalid_query"),
        ("?model=", 400, "invalid_query"),
        ("", 400, "model=NAME"),
    ],
)
async def test_errors_before_the_101_are_plain_http(plane: Plane, query: str, status: int, word: str) -> None:
    plane.route(1, serves=("/chat/completions",))
    refusal = await refused(talk_to(plane, query))
    assert refusal.response.status_code == status
    assert word in (refusal.response.body or b"").decode()
    assert refusal.response.headers["content-type"] == "application/json"


async def test_without_a_model_it_goes_to_a_replica_that_says_it_serves_the_path_W51(plane: Plane) -> None:
    async with library_server(echo) as port:
        first, second = plane.route(port, 1)
        table = (replace(first, serves=("/realtime",)), replace(second, serves=("/chat/completions",)))
        plane.engine.set_table(Table.of(99, table))
        async with talk_to(plane, "") as client:
            await client.send("x")
            assert await client.recv() == "x"


async def test_a_handshake_is_tried_at_another_replica_before_the_101(plane: Plane) -> None:
    async def busy(call: Call) -> None:
        await call.send(plain(b"{}", status=b"503 Busy"))

    async def hangs_up(call: Call) -> None:
        call.close()

    async def wrong_proof(call: Call) -> None:
        await call.send(SWITCH)  # the proof of another key

    for script in (busy, hangs_up, wrong_proof):
        async with library_server(echo) as port:
            bad = await plane.add(script)
            for _ in range(4):
                plane.route(bad, port)
                async with talk_to(plane) as client:
                    await client.send("x")
                    assert await client.recv() == "x"
                    assert client.response is not None
                    if bad.calls:
                        assert client.response.headers["x-attempts"] == "2"
                        break
            assert bad.calls
    plane.route(1)
    assert (await refused(talk_to(plane))).response.status_code == 503


async def test_a_full_replica_makes_a_handshake_wait_for_room(planes: MakePlane) -> None:
    plane = await planes(queue_timeout_s=0.5)
    async with library_server(echo) as port:
        plane.route(port, limit=1)
        async with talk_to(plane):
            assert (await refused(talk_to(plane))).response.status_code == 503  # queue_timeout
            waiting = asyncio.ensure_future(talk_to(plane).__aenter__())
            await until(lambda: len(plane.engine.waiting) == 1)
        client = await asyncio.wait_for(waiting, 5)
        await client.send("x")
        assert await client.recv() == "x"
        await client.close()


# -- its end -----------------------------------------------------------------------------------------------------------


async def test_a_client_that_vanishes_ends_the_replicas_side_within_a_second_D32(plane: Plane) -> None:
    ended: list[int | None] = []

    async def handler(socket: ServerConnection) -> None:
        await socket.wait_closed()
        ended.append(socket.close_code)

    async with library_server(handler) as port:
        plane.route(port)
        client = await talk_to(plane)
        client.transport.abort()
        await until(lambda: bool(ended), 1.0)
        await until(lambda: plane.in_flight() == 0, 1.0)
    assert ended == [1006]
    assert outcomes(plane) == {"CLIENT_GONE": 1}


@pytest.mark.parametrize("middle", [False, True])
async def test_a_replica_that_vanishes_is_told_to_the_client_within_a_second_D32(plane: Plane, *, middle: bool) -> None:
    async def die(socket: ServerConnection) -> None:
        await socket.recv()
        if middle:  # of a frame: a Close would be taken for its rest
            socket.transport.write(b"\x81\x7e\x10\x00half of it")
            await asyncio.sleep(0.1)
        socket.transport.abort()

    async with library_server(die) as port:
        plane.route(port)
        client = await talk_to(plane)
        await client.send("die")
        await asyncio.wait_for(client.wait_closed(), 1.0)
        assert client.close_code == (1006 if middle else 1011)
        await until(lambda: plane.in_flight() == 0)
    assert outcomes(plane) == {"DIED": 1}


async def test_the_routers_stop_closes_sessions_after_the_drain_and_both_sides_hear_1012_D33(plane: Plane) -> None:
    ended: list[int | None] = []

    async def handler(socket: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await echo(socket)
        ended.append(socket.close_code)

    async with library_server(handler) as port:
        plane.route(port)
        client = await talk_to(plane)
        plane.engine.drain()
        await client.send("still here")
        assert await client.recv() == "still here"
        assert plane.engine.busy()
        plane.engine.abort_all()
        assert await closed(client) == (1012, "the router is stopping: connect again")
        await until(lambda: bool(ended), 2.0)
        assert ended == [1012]
        await until(lambda: not plane.engine.clients, 2.0)


async def test_a_close_of_ours_waits_for_the_end_of_the_frame_D33(plane: Plane) -> None:
    go = asyncio.Event()

    async def halves(call: Call) -> None:
        frame = Frame(Opcode.TEXT, b"one whole message").serialize(mask=False)
        await call.send(SWITCH + frame[:5])
        await go.wait()
        await call.send(frame[5:] + b"\x81\x7e")
        await call.until_gone()

    plane.route(await plane.add(halves))
    reader, writer = await plane.open()
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(5)
    plane.engine.abort_all()
    await asyncio.sleep(0.1)
    go.set()
    rest = await asyncio.wait_for(reader.read(), 5)
    assert rest.startswith(b"one whole message"[3:] + b"\x88")
    assert struct.unpack("!H", rest[16:18]) == (1012,)
    writer.close()


async def test_sessions_at_a_replica_that_drains_are_told_to_connect_again_D28_D33(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.proxy.tunnel.LEAVING_S", 0.6)
    async with library_server(echo) as leaving, library_server(echo) as staying:
        (endpoint,) = plane.route(leaving)
        client = await talk_to(plane)
        table = (replace(endpoint, eligibility=Eligibility.DRAINING), replace(endpoint, id="r1", port=staying, slot=1))
        plane.engine.set_table(Table.of(99, table))
        await asyncio.sleep(0.1)
        await client.send("not at once")
        assert await client.recv() == "not at once"
        assert await closed(client) == (1012, "the replica is leaving: connect again")
        async with talk_to(plane) as again:
            assert plane.engine.counters.total(1, IN_FLIGHT) == 1
            await again.send("x")
            assert await again.recv() == "x"


async def test_an_idle_session_ends_and_a_ping_keeps_it_D33(planes: MakePlane) -> None:
    plane = await planes(idle_timeout_s=1.0)
    async with library_server(echo, ping_interval=None) as port:
        plane.route(port)
        idle = await talk_to(plane, ping_interval=None)
        pinged = await talk_to(plane, ping_interval=0.3)
        assert await closed(idle) == (1001, "no byte came for 1 s")
        await pinged.send("x")
        assert await pinged.recv() == "x"
        await pinged.close()
    assert outcomes(plane) == {"OK": 2}


async def test_a_session_has_a_limit_of_its_own_D33(planes: MakePlane) -> None:
    plane = await planes(total_timeout_s=0.2, websocket_timeout_s=1.0)
    async with library_server(echo) as port:
        plane.route(port)
        client = await talk_to(plane)
        await asyncio.sleep(0.5)
        await client.send("beyond what a request may take")
        assert await client.recv() == "beyond what a request may take"
        assert await closed(client) == (1001, "a session may last 1 s")


# -- bounds ------------------------------------------------------------------------------------------------------------


async def test_a_client_that_does_not_read_slows_the_replica_and_is_dropped_D3(planes: MakePlane) -> None:
    plane = await planes(write_stall_s=1.0)
    sent = 0

    async def flood(socket: ServerConnection) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.send(b"x" * 65536)
                sent += 65536

    async with library_server(flood, compression=None) as port:
        plane.route(port)
        reader, writer = await plane.open()
        writer.write(HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport of sockets
        await until(lambda: plane.in_flight() == 0, 15.0)
        assert sent < 32 << 20  # what the kernel's buffers hold
        writer.close()


async def test_a_replica_that_does_not_read_slows_the_client_and_ends_the_session_D3(planes: MakePlane) -> None:
    plane = await planes(write_stall_s=1.0)

    async def deaf(call: Call) -> None:
        call.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport of sockets
        await call.send(SWITCH)
        await asyncio.sleep(20)

    plane.route(await plane.add(deaf))
    reader, writer = await plane.open()
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    sent = 0

    async def flood() -> None:
        nonlocal sent
        frame = Frame(Opcode.BINARY, b"x" * 65536).serialize(mask=True)
        while True:
            writer.write(frame)
            await writer.drain()
            sent += len(frame)

    flooding = asyncio.ensure_future(flood())
    close = await asyncio.wait_for(reader.readexactly(4), 15)
    assert close[:1] == b"\x88"
    assert struct.unpack("!H", close[2:4]) == (1011,)
    assert sent < 32 << 20
    flooding.cancel()
    with contextlib.suppress(asyncio.CancelledError, ConnectionError):
        await flooding
    writer.close()
    assert outcomes(plane) == {"TIMED_OUT": 1}


async def test_frames_that_come_before_the_101_wait_for_it_and_are_bounded(plane: Plane) -> None:
    go = asyncio.Event()

    async def late(call: Call) -> None:
        await go.wait()
        await call.send(SWITCH)
        while data := await call.reader.read(65536):
            await call.send(data)

    plane.route(await plane.add(late))
    reader, writer = await plane.open()
    early = bytes(range(256)) * 2000
    writer.write(HANDSHAKE + early)
    await until(lambda: len(plane.replicas[0].calls) == 1)
    await asyncio.sleep(0.2)
    (client,) = plane.engine.clients
    assert len(client._buffer) < 400_000  # type: ignore[attr-defined]  # the bound is its own
    go.set()
    await reader.readuntil(b"\r\n\r\n")
    assert await asyncio.wait_for(reader.readexactly(len(early)), 5) == early
    writer.close()


# -- smuggling ---------------------------------------------------------------------------------------------------------

SECOND = b"POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\ncontent-length: 13\r\n\r\n" + b'{"model":"m"}'


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad", b"403 Forbidden", b"404 Not Found", b"426 Upgrade Required"])
async def test_what_follows_a_refused_handshake_is_nobodys_request_R84(plane: Plane, status: bytes) -> None:
    async def refuse(call: Call) -> None:
        await call.send(plain(b"{}", status=status))

    replica = await plane.add(refuse)
    plane.route(replica)
    reply = await plane.send(HANDSHAKE + SECOND, until_close=True)
    assert reply.closed
    assert reply.raw.count(b"HTTP/1.1 ") == 1
    assert len(replica.calls) == 1
    plane.route()
    reply = await plane.send(HANDSHAKE + SECOND, until_close=True)  # the router's own refusal
    assert reply.closed
    assert reply.raw.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "field", [b"sec-websocket-version: 13\r\n", b"upgrade: websocket\r\n", b"connection: Upgrade\r\n"]
)
async def test_half_a_handshake_reaches_no_replica_R83(plane: Plane, field: bytes) -> None:
    replica = await plane.add(lambda call: call.send(SWITCH))
    plane.route(replica)
    raw = HANDSHAKE.replace(field, b"")
    assert raw != HANDSHAKE
    reply = await plane.send(raw + SECOND, until_close=True)
    assert (reply.status, reply.closed, replica.calls) == (426, True, [])
    assert reply.header("upgrade") == "websocket"


async def test_an_upgrade_on_another_path_opens_no_tunnel_R69_U25(planes: MakePlane) -> None:
    plane = await planes(any_path=True)
    replica = await plane.add(lambda call: call.send(SWITCH))
    plane.route(replica)
    for path in (b"/v1/realtimes", b"/v1/models/x/realtime", b"/ws"):
        reply = await plane.send(HANDSHAKE.replace(b"/v1/realtime", path))
        assert reply.status != 101
    assert not any(b"upgrade" in call.head.lower() for call in replica.calls)
    reply = await plane.post(b'{"model":"m"}')
    assert reply.status == 502  # a 101 that nobody asked for
    assert b"upstream_malformed" in reply.body


async def test_a_proof_for_another_key_is_502_U26(plane: Plane) -> None:
    replica = await plane.add(lambda call: call.send(SWITCH.replace(PROOF, b"x" * len(PROOF)) + b"\x81\x02hi"))
    plane.route(replica)
    reply = await plane.send(HANDSHAKE, until_close=True)
    assert reply.status == 502
    assert b"hi" not in reply.body[-3:]


async def test_a_disconnect_is_seen_by_fastapi_D32(plane: Plane) -> None:
    codes: list[int] = []
    app = FastAPI()

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        await socket.accept()
        try:
            await socket.receive_text()
        except WebSocketDisconnect as gone:
            codes.append(gone.code)

    async with uvicorn_server(app) as port:
        plane.route(port)
        client = await talk_to(plane)
        client.transport.abort()
        await until(lambda: bool(codes), 1.0)
    assert codes in ([1006], [1005])


async def test_a_refusal_reads_as_one_reply(plane: Plane) -> None:
    reader, writer = await plane.open()
    writer.write(HANDSHAKE.replace(b"GET ", b"POST "))
    reply = await read_reply(reader, until_close=True)
    assert (reply.status, reply.header("allow")) == (405, "GET")
    writer.close()
