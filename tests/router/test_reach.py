"""Healthy means that a request would succeed: what requests cannot reach is said, with the reason in plain words."""

import asyncio
import errno
import random
import socket
import ssl
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer

from common.http.client import make_session
from common.http.tls import client_context
from common.wire.record import ServiceRecord
from router.model import Replica
from router.prober import ProbeResult, ReplicaProber
from router.proxy.reach import CLOSES, SPEAKS_TLS, reason_of
from tests.ports import free_port
from tests.router.fakes import Call, FakeReplica, Plane, plain
from tests.router.test_process import Node, node

__all__ = ["node"]
BODY = b'{"model":"m"}'


async def fine(call: Call) -> None:
    await call.send(plain(b'{"ok":1}'))


async def hang_up(call: Call) -> None:
    call.close()


class Blunt(FakeReplica):
    """Answers what is no HTTP with 400, as servers do."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(), "connection refused at ::1"),
        (TimeoutError(), "no connection in time at ::1"),
        (ConnectionResetError(), "the connection is closed as it begins at ::1"),
        (socket.gaierror(-2, "unknown"), "the name does not resolve: ::1"),
        (OSError(errno.ENETUNREACH, "x"), "no way to ::1"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "TLS failed"),
        (OSError(errno.EMFILE, "Too many open files"), "[Errno 24] Too many open files at ::1"),
    ],
)
def test_reason_of_a_failed_connection_is_in_plain_words_W18(error: BaseException, said: str) -> None:
    assert reason_of(error, "::1").startswith(said)


async def test_requests_that_do_not_reach_a_replica_are_counted_until_one_does_W18(plane: Plane) -> None:
    port = free_port()
    plane.route(port)
    for _ in range(3):
        assert (await plane.post(BODY)).status == 503
    [run] = plane.engine.connector.unreached.values()
    assert (run.failures, run.reason) == (3, f"connection refused at 127.0.0.1:{port}")
    replica = await plane.add(fine)
    plane.route(replica, id=next(iter(plane.engine.connector.unreached)))
    plane.engine.outliers.forget_all_but(set())
    assert (await plane.post(BODY)).status == 200
    assert plane.engine.connector.unreached == {}


@pytest.mark.parametrize("case", ["TLS asked without", "without asked with", "not believed", "hangs up"])
async def test_reason_names_what_is_wrong_between_the_record_and_the_port_W18(plane: Plane, case: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with_tls = case in ("TLS asked without", "not believed")
    kind = Blunt if case == "without asked with" else FakeReplica
    replica = await kind(hang_up).start(tls=context if with_tls else None)
    plane.replicas.append(replica)
    plane.engine.connector.tls = client_context(None)
    plane.route(replica, tls=case in ("without asked with", "not believed"))
    for _ in range(2):
        await plane.post(BODY)
    expected = {
        "TLS asked without": SPEAKS_TLS,
        "without asked with": "the port does not speak TLS",
        "not believed": "its certificate is not believed: ",
        "hangs up": CLOSES,
    }[case]
    async with asyncio.timeout(5):
        while not next(iter(plane.engine.connector.unreached.values())).reason.startswith(expected):
            await asyncio.sleep(0.01)


async def probed(status: int, text: str) -> ProbeResult:
    """What a probe makes of a server that answers everything so."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=text)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server, make_session(timeout_s=5) as session:
        record = ServiceRecord(name="a", host="127.0.0.1", port=server.port or 0, url=str(server.make_url("")))
        prober = ReplicaProber(session, list, lambda *_: None, interval_s=5, timeout_s=5, rng=random.Random(1))
        return await prober.ask(Replica(record, generation="1", leased=True))


@pytest.mark.parametrize(
    "text",
    [
        "<center>The plain HTTP request was sent to HTTPS port</center>",
        "Client sent an HTTP request to an HTTPS server.\n",
        "You're speaking plain HTTP to an SSL-enabled server port.",
    ],
)
async def test_port_that_wants_tls_is_not_well_though_it_answers_W18(text: str) -> None:
    assert await probed(400, text) == ProbeResult(ok=False, problem=SPEAKS_TLS)
    assert (await probed(400, "bad request")).ok


async def test_server_that_wants_a_key_is_said_to_W18() -> None:
    found = await probed(401, "{}")
    assert found.ok
    assert found.problem is not None
    assert "it wants a key: /v1/models answers 401" in found.problem


@pytest.mark.e2e
async def test_services_and_metrics_say_that_requests_fail_where_probes_pass_W18(node: Node, tmp_path: Path) -> None:
    async def only_probes(call: Call) -> None:
        await (call.send(plain(b'{"data":[{"id":"m"}]}')) if call.line.startswith(b"GET") else hang_up(call))

    replica = await FakeReplica(only_probes).start()
    static = tmp_path / "static.json"
    static.write_text(f'[{{"name":"a","host":"127.0.0.1","port":{replica.port}}}]')

    async def told() -> bool:
        await node.chat()
        [shown] = (await node.get("/services"))["services"]
        return shown["healthy"] and CLOSES in shown.get("problem", "")

    async def logged() -> bool:
        return "replica.unreachable" in (tmp_path / "router.log").read_text()

    try:
        async with node.router("--static-services", str(static)):
            await node.until(told)
            async with aiohttp.ClientSession() as http, http.get(f"{node.url}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            [value] = [line.rpartition(" ")[2] for line in lines if line.startswith("svc_router_unreached_requests{")]
            assert float(value) >= 3
            await node.until(logged)
    finally:
        await replica.stop()
