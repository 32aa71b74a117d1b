"""Heartbeats answered before the application get what the application would have answered, and leave behind the same."""

import asyncio
import re
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from common.http.serve import Address, bound_port, start, stop_serving
from registry.app import make_app
from registry.http.quick import ROUTE, QuickHeartbeats
from registry.settings import RegistrySettings
from registry.store.memory import MemoryStore
from tests.registry.conftest import Client, FakeClock, StartClient, body, ours, parts
from tests.registry.test_guard import ADMIN, READ, REGISTER, files

REPORT = {"replica_id": "r", "status": "ready", "models": ["m"], "running": 3, "updated_at": "2026-01-01T00:00:00.000Z"}
_DATE = re.compile(rb"Date: [^\r]+")


def call(name: str = "gpu-1", content: bytes = b"", *heads: str, version: str = "1.1", method: str = "POST") -> bytes:
    lines = [f"{method} /services/{name}/heartbeat HTTP/{version}", "Host: x", *heads]
    if content and not any(head.lower().startswith("transfer-encoding") for head in heads):
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode() + content


def said(**members: Any) -> bytes:
    return msgspec.json.encode(members)


AUTHORIZED = f"Authorization: Bearer {REGISTER}"
PLAIN = {
    "nothing": call(),
    "length_nought": call("gpu-1", b"", "Content-Length: 0"),
    "status": call("gpu-1", said(status="running")),
    "report": call("gpu-1", said(**REPORT, instance_id="i-1", incarnation=1)),
    "durable": call("gpu-1", said(**REPORT | {"models": ["other"]}, instance_id="i-1")),
    "drains": call("gpu-1", said(status="draining")),
    "admin": call("gpu-1", said(**REPORT), f"Authorization: Bearer {ADMIN}"),
    "chunked": call("gpu-1", b"2\r\n{}\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
}
ODD = {
    "query": call("gpu-1").replace(b"/heartbeat ", b"/heartbeat?x=1 "),
    "escaped": call("gpu%2D1"),
    "unknown": call("gpu-9", said(**REPORT)),
    "no_name": call("", said(**REPORT)),
    "dots": call(".."),
    "another_instance": call("gpu-1", said(**REPORT, instance_id="i-2")),
    "overtaken": call("gpu-1", said(**REPORT, instance_id="i-1", incarnation=0)),
    "ahead": call("gpu-1", said(**REPORT, instance_id="i-1", incarnation=7)),
    "no_json": call("gpu-1", b"{"),
    "no_object": call("gpu-1", b"[1]"),
    "twice": call("gpu-1", b'{"a":1,"a":2}'),
    "bad_status": call("gpu-1", said(status=7)),
    "bad_bytes": call("gpu-1", b'{"status":"\xff"}'),
    "large": call("gpu-1", said(**REPORT, padding="x" * 20_000)),
    "too_large": call("gpu-1", said(padding="x" * (600 << 10)), AUTHORIZED),
    "deflated": call("gpu-1", zlib.compress(said(**REPORT)), "Content-Encoding: deflate"),
    "foreign_page": call("gpu-1", said(**REPORT), "Origin: http://elsewhere"),
    "own_page": call("gpu-1", said(**REPORT), "Origin: http://x"),
    "expects": call("gpu-1", b"", "Expect: something"),
    "closes": call("gpu-1", b"", "Connection: close"),
    "http_1_0": call("gpu-1", b"", version="1.0"),
    "http_1_0_kept": call("gpu-1", b"", "Connection: keep-alive", version="1.0"),
    "get": call("gpu-1", b"", method="GET"),
    "another_name": call("cpu-1", said(**REPORT)),
    "reader": call("gpu-1", said(**REPORT), f"Authorization: Bearer {READ}"),
    "stranger": call("gpu-1", said(**REPORT), "Authorization: Bearer wrong"),
    "nobody": call("gpu-1", said(**REPORT), "Authorization: "),
}


async def exchange(client: Client, raw: bytes) -> bytes:
    """All that is answered; where the connection is kept, what an ordinary call after it gets as well."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(raw)
    async with asyncio.timeout(5):
        answered = await reader.read(1 << 20)
        try:
            writer.write(f"GET /nowhere HTTP/1.1\r\nHost: x\r\n{AUTHORIZED}\r\nConnection: close\r\n\r\n".encode())
            answered += await reader.read()
        except ConnectionError:
            answered += b"closed"
    writer.close()
    return _DATE.sub(b"Date:", answered)


async def seen(client: Client, raw: bytes) -> dict[str, Any]:
    """What came of a request: the answers, and what it left in the registry."""
    registry = parts(client)
    answered = await exchange(client, raw)
    entry = registry.catalogue.get("gpu-1")
    assert entry is not None
    audit = registry.audit.path.read_bytes() if registry.audit.path.exists() else b""
    return {
        "answered": answered,
        "instance": entry.instance,
        "renewed_at": entry.renewed_at,
        "revision": registry.catalogue.revision,
        "renewals": registry.catalogue.renewals,
        "answers": dict(registry.metrics.answers),
        "failures": list(registry.guard._failures),
        "audit": re.sub(rb'"(time|remote)":"[^"]*"|user \d+', b"", audit),
    }


@pytest.mark.parametrize("guarded", [False, True], ids=["open", "guarded"])
async def test_both_ways_answer_the_same_and_leave_the_same(
    start_registry: StartClient,
    clock: FakeClock,
    tmp_path: Path,
    guarded: bool,  # noqa: FBT001 - a parameter
) -> None:
    found: list[dict[str, dict[str, Any]]] = []
    for quick in (True, False):
        clock.now = 1000.0
        directory = tmp_path / str(quick)
        directory.mkdir()
        settings = files(directory) if guarded else {}
        client = await start_registry(quick=quick, data_dir=directory, **settings)
        parts(client).prober.retime(interval_s=3600, timeout_s=1, concurrency=0)  # its verdicts would come at any time
        for name in ("gpu-1", "cpu-1"):
            await client.post("/services", json=ours(name), headers={"Authorization": f"Bearer {ADMIN}"})
        found.append({})
        for name, raw in (PLAIN | ODD).items():
            clock.advance(0.1)  # all of them within a lease, or it would depend on when the sweeper looks
            shown = (
                raw
                if b"Authorization" in raw or not guarded
                else raw.replace(b"Host: x", f"Host: x\r\n{AUTHORIZED}".encode(), 1)
            )
            found[-1][name] = await seen(client, shown)
    quickly, ordinarily = found
    for name, told in ordinarily.items():
        assert quickly[name] == told, name
    statuses = {int(told["answered"][9:12]) for told in ordinarily.values()}
    assert statuses >= ({200, 400, 404, 405, 409, 413, 417} | ({401, 403} if guarded else {403}))


@pytest.mark.parametrize("name", PLAIN)
async def test_a_plain_one_reaches_no_route(start_registry: StartClient, name: str) -> None:
    client = await start_registry()
    await client.post("/services", json=ours("gpu-1"))
    runner = client.server.runner
    assert runner is not None
    resolved: list[str] = []
    resolve = client.app.router.resolve

    async def noting(request: web.Request) -> Any:
        resolved.append(request.path)
        return await resolve(request)

    client.app.router.resolve = noting  # type: ignore[method-assign]
    await exchange(client, PLAIN[name])  # the first report is written to the store, in its turn
    del resolved[:]
    await exchange(client, PLAIN[name])
    assert resolved == ["/nowhere"]


async def test_a_full_registry_turns_plain_heartbeats_away_too_C14(start_registry: StartClient) -> None:
    client = await start_registry()
    await client.post("/services", json=ours("gpu-1"))
    registry = parts(client)
    registry.connections.limit, registry.connections.count = 1, 2
    assert (await exchange(client, call()))[9:12] == b"503"
    assert registry.metrics.answers[ROUTE, 503] == 1


async def test_a_doubt_reaches_the_babysitter_W26(start_registry: StartClient) -> None:
    client = await start_registry()
    await client.post("/services", json=ours("gpu-1"))
    async with client.post("/v1/routers/r/failing", json={"failing": {"gpu-1": "nothing comes"}}) as answer:
        assert answer.status == 200
    async with client.post("/services/gpu-1/heartbeat") as answer:
        assert (await answer.json())["doubt"] == {"router": "r", "reason": "nothing comes"}


async def test_each_plain_heartbeat_has_its_line_at_level_debug(start_registry: StartClient) -> None:
    client = await start_registry()
    await client.post("/services", json=ours("gpu-1"))
    with capture_logs() as lines:
        await exchange(client, call())
    (line,) = (it for it in lines if it["event"] == "http.answered" and it["method"] == "POST")
    assert (line["path"], line["status"]) == ("/services/gpu-1/heartbeat", 200)


async def test_many_on_one_connection_are_answered_in_turn(start_registry: StartClient) -> None:
    client = await start_registry()
    for name in ("gpu-1", "gpu-2"):
        await client.post("/services", json=ours(name))
    answered = await exchange(client, (call("gpu-1", said(**REPORT)) + call("gpu-9") + call("gpu-2")) * 5)
    statuses = re.findall(rb"HTTP/1.1 (\d+)", answered)
    assert statuses == [b"200", b"404", b"200"] * 5 + [b"404"]


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[web.AppRunner]:
    app = make_app(RegistrySettings(data_dir=tmp_path), MemoryStore())
    runner = await start(app, Address("127.0.0.1", 0), drain_timeout_s=2, what="registry", quick=QuickHeartbeats(app))
    yield runner
    await stop_serving(runner)


async def test_a_registry_that_stops_says_to_plain_heartbeats_that_it_closes(serving: web.AppRunner) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", bound_port(serving))

    async def ask(raw: bytes) -> bytes:
        writer.write(raw)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None
        await reader.readexactly(int(length[1]))
        return head

    content = msgspec.json.encode(body("gpu-1"))
    head = f"POST /services HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    assert b" 201 " in await ask(head + content)
    assert b"Connection" not in await ask(call())
    stopping = asyncio.create_task(stop_serving(serving))
    await asyncio.sleep(0)
    assert b"Connection: close" in await ask(call())
    writer.close()
    await stopping
