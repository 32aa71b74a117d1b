"""A probe against servers that answer well, badly, slowly, in pieces, or not at all."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trustme
from aiohttp.abc import ResolveResult

from common.discovery.plan import plan_of
from common.http.tls import client_context
from registry.fleet.agents import AgentAway, AgentClient
from registry.fleet.placement import NodeAgent
from registry.outbound.addresses import LOOPBACK, AddressPolicy, networks
from registry.outbound.sessions import GuardedResolver, agent_session, probe_session
from registry.probes.probe import ask
from tests.ports import free_port


@asynccontextmanager
async def server(
    *pieces: bytes, close: bool = True, at: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Answers every connection with `pieces`; yields its port and the requests it got."""
    requests: list[bytes] = []
    over = asyncio.Event()
    answering: set[asyncio.Task[None] | None] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError):  # a probe hangs up as soon as it knows
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
            if not close:
                await over.wait()
        writer.transport.abort()

    async with await asyncio.start_server(answer, at, 0, ssl=tls) as listening:
        yield listening.sockets[0].getsockname()[1], requests
        over.set()
        await asyncio.gather(*filter(None, answering), return_exceptions=True)


async def probe(url: str, resolver: GuardedResolver | None = None, timeout_s: float = 1.0) -> bool:
    resolver = resolver or GuardedResolver(AddressPolicy(networks(LOOPBACK)))
    async with probe_session(resolver) as session:
        return await ask(session, plan_of(url.removesuffix("/health"), "", 0), "/health", timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("pieces", "good"),
    [
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",), True),
        ((b"HTTP/1.0 200 OK\r\n\r\n",), True),
        ((b"HTT", b"P/1.1 2", b"00 OK\r\n\r\n"), True),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), False),
        ((b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n",), False),
        ((b"HTTP/1.1 500 Oops\r\n\r\n",), False),
        ((b"HTTP/1.1 2000 Odd\r\n\r\n",), False),
        ((b"SSH-2.0-OpenSSH_9.2 200 \r\n",), False),
        ((b"HTTP/1.1",), False),
        ((), False),
    ],
)
async def test_answer_is_judged_by_its_status(pieces: tuple[bytes, ...], good: bool) -> None:  # noqa: FBT001 - a table's column
    async with server(*pieces) as (port, requests):
        assert await probe(f"http://127.0.0.1:{port}/health") is good
    assert requests[0].startswith(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:")


async def test_silent_server_costs_the_timeout() -> None:
    async with server(close=False) as (port, _):
        assert not await probe(f"http://127.0.0.1:{port}/health", timeout_s=0.1)


async def test_refused_connection_is_a_bad_answer() -> None:
    assert not await probe(f"http://127.0.0.1:{free_port()}/health")


async def test_https_is_asked_too_and_fails_without_tls() -> None:
    async with server(b"HTTP/1.1 200 OK\r\n\r\n") as (port, _):
        assert not await probe(f"https://127.0.0.1:{port}/health")


async def test_https_is_believed_by_the_ca_file_alone_W2() -> None:
    ca, resolver = trustme.CA(), GuardedResolver(AddressPolicy(networks(LOOPBACK)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    async with server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", tls=context) as (port, requests):
        for told, good in ((ca, True), (trustme.CA(), False)):
            async with probe_session(resolver, client_context(told.cert_pem.bytes().decode())) as session:
                plan = plan_of(f"https://127.0.0.1:{port}", "", 0)
                assert await ask(session, plan, "/health", timeout_s=5.0) is good
    assert len(requests) == 1


async def test_name_is_resolved() -> None:
    async with server(b"HTTP/1.1 200 OK\r\n\r\n") as (port, _):
        assert await probe(f"http://localhost:{port}/health")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "127.0.0.2"])
async def test_name_is_asked_at_all_of_its_addresses_W17(address: str) -> None:
    """A dual-stack host's `localhost` is ::1 and 127.0.0.1; a server may have chosen either."""

    class All(GuardedResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            [old] = await super().resolve("127.0.0.1", port, family)
            new: ResolveResult = {**old, "hostname": host, "host": "::1", "family": socket.AF_INET6}
            return [new, old, {**old, "host": "127.0.0.2"}]

    policy = AddressPolicy(networks(LOOPBACK))
    async with server(b"HTTP/1.1 200 OK\r\n\r\n", at=address) as (port, _):
        assert await probe(f"http://gpu1:{port}/health", All(policy))
        if address != "127.0.0.2":
            assert await probe(f"http://localhost:{port}/health", GuardedResolver(policy))


async def test_name_that_resolves_to_a_forbidden_address_is_never_connected_to_C16() -> None:
    elsewhere = GuardedResolver(AddressPolicy(networks(["10.0.0.0/8"])))
    async with server(b"HTTP/1.1 200 OK\r\n\r\n") as (port, requests):
        assert not await probe(f"http://localhost:{port}/health", elsewhere)
        assert not await probe(f"https://localhost:{port}/health", elsewhere)
        assert requests == []
    with pytest.raises(OSError, match="no address"):
        await elsewhere.resolve("localhost", port, socket.AF_INET)


@pytest.mark.parametrize("host", ["gpu1..lab", "h" * 64])
async def test_name_that_cannot_be_asked_for_is_a_bad_answer(host: str) -> None:
    """An older registry's record may have one."""
    resolver = GuardedResolver(AddressPolicy(networks(LOOPBACK)))
    assert not await probe(f"http://{host}:8000/health")
    assert not await probe(f"https://{host}:8000/health")
    with pytest.raises(OSError, match="is no name"):
        await resolver.resolve(host, 8000)
    async with agent_session(resolver) as session:
        with pytest.raises(AgentAway):
            await AgentClient(session).ask(NodeAgent("n", f"http://{host}:8000"), "GET", "/")
