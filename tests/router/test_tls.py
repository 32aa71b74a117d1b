"""The router's own TLS: the data plane over it, and certificates that change while requests go on."""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from common.http.tls import Tls, TlsFiles
from common.http.tls_listener import TlsListener
from common.tasks import TaskScope
from router.proxy.downstream import Downstream
from tests.router import rolling
from tests.router.fakes import DONE, SSE_HEAD, Call, Endless, FakeReplica, Flood, Plane, event, plain, request
from tests.router.rolling import Client, Tally
from tests.router.test_rolls import Router, running
from tests.tls import Authority

KEPT = "connection: keep-alive\r\n"
STREAM = b'{"model":"m","stream":true}'


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@asynccontextmanager
async def over_tls(plane: Plane, tls: Tls) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client of the plane, whose listener speaks TLS."""
    plane.server.close()
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    async with TaskScope("handshakes") as scope:
        listener = TlsListener([listening], lambda: Downstream(plane.engine), lambda: tls.server, scope)
        reader, writer = await asyncio.open_connection(*listening.getsockname(), ssl=tls.client)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            listener.close()


async def test_requests_and_streams_pass_over_tls_by_one_connection(plane: Plane, authority: Authority) -> None:
    async def script(call: Call) -> None:
        if b"stream" in call.body:
            await call.send(SSE_HEAD + event("a") + DONE)
        else:
            await call.send(plain(call.body))

    plane.route(await plane.add(script))
    body = b'{"model":"m","x":"%b"}' % (b"y" * 600_000)
    async with over_tls(plane, Tls(authority.files())) as (reader, writer):
        for _ in range(3):
            writer.write(request(STREAM, headers=KEPT))
            assert b'{"t":"a"}' in await reader.readuntil(b"0\r\n\r\n")
            writer.write(request(body, headers=KEPT))
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(body)) == body


async def test_client_on_tls_that_leaves_ends_the_stream_at_the_replica(plane: Plane, authority: Authority) -> None:
    endless = Endless()
    plane.route(await plane.add(endless))
    async with over_tls(plane, Tls(authority.files())) as (reader, writer):
        writer.write(request(STREAM))
        await reader.readuntil(b'{"t":"a"}')
        writer.close()
        async with asyncio.timeout(5):
            await endless.gone.wait()


async def test_client_on_tls_that_does_not_read_stops_the_replicas_writing(plane: Plane, authority: Authority) -> None:
    flood = Flood()
    plane.route(await plane.add(flood))
    async with over_tls(plane, Tls(authority.files())) as (reader, writer):
        writer.write(request(STREAM))
        await reader.readuntil(b"\r\n\r\n")
        await flood.stands_still()
        assert 0 < flood.sent < flood.size // 2


def flags(authority: Authority, *, mutual: bool = False) -> list[str]:
    """The router's."""
    settings = authority.settings(mutual=mutual)
    return [word for name, path in settings.items() for word in (f"--{name.replace('_', '-')}", str(path))]


async def shown(port: int, context: ssl.SSLContext) -> bytes:
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    der: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return der


async def until_shown_by_all(router: Router, context: ssl.SSLContext, before: set[bytes]) -> bytes:
    """Wait until no worker shows one of `before`; the kernel chooses the worker, so ask often."""
    async with asyncio.timeout(60):
        while (seen := {await shown(router.port, context) for _ in range(8)}) & before:
            await asyncio.sleep(0.2)
    (der,) = seen
    return der


@pytest.mark.e2e
async def test_certificates_change_under_load_without_an_error_and_bad_ones_are_refused(
    tmp_path: Path, authority: Authority
) -> None:
    more = flags(authority, mutual=True)
    cert, key = authority.issue("client")
    context = Tls(TlsFiles(ca=authority.path, client_cert=cert, client_key=key)).client
    tally = Tally()
    async with FakeReplica(rolling.answer) as replica, running(tmp_path, replica, 2, *more) as router:
        clients = [Client(router.port, tally, pause_s=0.02, stream_each=5, tls=context) for _ in range(8)]
        clients += [Client(router.port, tally, pause_s=0.05, tls=context, keeps=False) for _ in range(2)]
        tasks = [asyncio.ensure_future(client.run()) for client in clients]
        seen = {await shown(router.port, context)}
        for days in (20, 10):
            authority.issue("node", days=days)
            seen.add(await until_shown_by_all(router, context, set(seen)))
        authority.issue("node", days=-1)
        async with asyncio.timeout(60):
            while '"config.refused"' not in router.log:
                await asyncio.sleep(0.1)
        assert "certificate has expired" in router.log
        assert await shown(router.port, context) in seen
        for client in clients:
            client.leaves = True
        await asyncio.gather(*tasks)
        with pytest.raises((OSError, EOFError)):
            await without_certificate(router.port, authority)
    assert not tally.errors
    assert tally.answered > 50
    assert tally.told == 0, "no worker was replaced"


async def without_certificate(port: int, authority: Authority) -> None:
    bare = Tls(TlsFiles(ca=authority.path)).client
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=bare)
    writer.write(b"GET /health HTTP/1.1\r\nhost: r\r\n\r\n")
    try:
        await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.transport.abort()


@pytest.mark.e2e
async def test_a_roll_closes_connections_with_tls_only_once_they_are_told(tmp_path: Path, authority: Authority) -> None:
    tally = Tally()
    context = Tls(TlsFiles(ca=authority.path)).client
    async with FakeReplica(rolling.answer) as replica, running(tmp_path, replica, 1, *flags(authority)) as router:
        clients = [Client(router.port, tally, pause_s=0.02, stream_each=5, tls=context) for _ in range(8)]
        tasks = [asyncio.ensure_future(client.run()) for client in clients]
        await asyncio.sleep(0.3)
        await router.roll()
        await asyncio.sleep(0.3)
        for client in clients:
            client.leaves = True
        await asyncio.gather(*tasks)
    assert not tally.errors
    assert tally.told >= len(clients)


@pytest.mark.e2e
@pytest.mark.world
async def test_1_000_requests_a_second_over_ten_new_certificates_have_no_error(
    tmp_path: Path, authority: Authority
) -> None:
    tally, until = Tally(), time.monotonic() + 20
    context = Tls(TlsFiles(ca=authority.path)).client
    async with FakeReplica(rolling.answer) as replica, running(tmp_path, replica, 2, *flags(authority)) as router:
        clients = [Client(router.port, tally, pause_s=0.05, tls=context) for _ in range(90)]
        tasks = [asyncio.ensure_future(client.run()) for client in clients]
        while time.monotonic() < until:
            await asyncio.sleep(2)
            authority.issue("node")
        for client in clients:
            client.leaves = True
        await asyncio.gather(*tasks)
        reloads = router.log.count('"config.reloaded"')
    print(json.dumps({"answered": tally.answered, "reloads": reloads}))  # noqa: T201 - a figure
    assert not tally.errors
    assert tally.connections == len(clients), "no connection was dropped"
    assert reloads >= 5
