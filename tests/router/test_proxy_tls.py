"""Replicas on https: whom the data plane believes, and that TLS is as bounded and as quick to let go as plain TCP."""

import asyncio
import socket
import ssl
from dataclasses import dataclass

import pytest
import trustme

from common.http.tls import client_context
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, Endless, FakeReplica, Flood, Plane, event, plain, request

BODY = b'{"model":"m"}'
STREAM = b'{"model":"m","stream":true}'


@dataclass
class Tls:
    """A CA, and a server's context and certificate."""

    ca: str
    leaf: str
    server: ssl.SSLContext


@pytest.fixture(scope="module")
def tls() -> Tls:
    ca = trustme.CA()
    leaf = ca.issue_cert("gpu1.example.org", "127.0.0.1")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(server)
    return Tls(ca.cert_pem.bytes().decode(), leaf.cert_chain_pems[0].bytes().decode(), server)


async def fine(call: Call) -> None:
    await call.send(plain(b'{"ok":1}'))


async def serve(plane: Plane, tls: Tls, script: object = fine) -> FakeReplica:
    replica = await FakeReplica(script).start(tls=tls.server)  # type: ignore[arg-type]  # a script
    plane.replicas.append(replica)
    plane.engine.connector.tls = client_context(tls.ca)
    return replica


async def test_replica_on_https_is_asked_over_tls_and_its_connection_is_kept_W2(plane: Plane, tls: Tls) -> None:
    replica = await serve(plane, tls)
    plane.route(replica, tls=True)
    large = BODY[:-1] + b',"x":"' + b"y" * 800_000 + b'"}'
    assert [(await plane.post(body)).status for body in (BODY, large, BODY)] == [200, 200, 200]
    assert replica.calls[1].body == large
    assert replica.connections == 1


async def test_certificate_of_the_server_itself_in_the_ca_file_is_believed_W2(plane: Plane, tls: Tls) -> None:
    replica = await serve(plane, tls)
    plane.engine.connector.tls = client_context(tls.leaf)
    plane.route(replica, tls=True)
    assert (await plane.post(BODY)).status == 200


@pytest.mark.parametrize("case", ["another CA", "another name", "no TLS"])
async def test_server_that_is_not_believed_gets_not_one_byte_of_a_request_W2(plane: Plane, tls: Tls, case: str) -> None:
    replica = await serve(plane, tls)
    host = "127.0.0.1"
    if case == "another CA":
        plane.engine.connector.tls = client_context(trustme.CA().cert_pem.bytes().decode())
    elif case == "another name":
        host = "localhost"
    else:
        await replica.stop()
        replica = await plane.add(fine)
    plane.route(replica, tls=True, host=host)
    reply = await plane.post(BODY)
    assert (reply.status, b"connect_failed" in reply.body) == (503, True)
    assert replica.calls == []


async def test_checks_are_off_only_by_the_setting_W2(plane: Plane, tls: Tls) -> None:
    replica = await serve(plane, tls)
    plane.engine.connector.tls = client_context(None, verify=False)
    plane.route(replica, tls=True, host="localhost")
    assert (await plane.post(BODY)).status == 200


async def test_handshake_that_does_not_come_costs_the_connect_timeout_W2(planes: MakePlane, tls: Tls) -> None:
    plane = await planes(connect_timeout_s=0.3)
    plane.engine.connector.tls = client_context(tls.ca)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        plane.route(silent.getsockname()[1], tls=True)
        assert (await plane.post(BODY)).status == 503


async def test_client_that_leaves_ends_the_stream_at_the_replica_W2(plane: Plane, tls: Tls) -> None:
    endless = Endless()
    plane.route(await serve(plane, tls, endless), tls=True)
    reader, writer = await plane.open()
    writer.write(request(STREAM))
    await reader.readuntil(b'{"t":"a"}')
    writer.close()
    async with asyncio.timeout(3):
        await endless.gone.wait()


async def test_client_that_does_not_read_stops_the_replicas_writing_W2(plane: Plane, tls: Tls) -> None:
    flood = Flood()
    plane.route(await serve(plane, tls, flood), tls=True)
    reader, writer = await plane.open()
    writer.write(request(BODY))
    await reader.readuntil(b"\r\n\r\n")
    async with asyncio.timeout(20):
        await flood.stands_still()
    assert flood.sent < flood.size / 2
    async with asyncio.timeout(30):
        await reader.readexactly(flood.size)  # and goes on when it reads
    writer.close()


async def test_stream_cut_without_goodbye_is_told_as_cut_and_one_that_ends_as_whole_W2(plane: Plane, tls: Tls) -> None:
    async def script(call: Call) -> None:
        await call.send(SSE_HEAD + event("a"))
        if b"cut" in call.body:
            call.writer.transport.abort()
        else:
            await call.send(DONE)

    plane.route(await serve(plane, tls, script), tls=True)
    whole = await plane.post(STREAM)
    assert (whole.status, whole.body.endswith(DONE)) == (200, True)
    cut = await plane.post(STREAM[:-1] + b',"user":"cut"}')
    assert b"upstream_died" in cut.body or b"upstream_truncated" in cut.body
