"""What a name means to ask and to bind, with servers that really listen where they do."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from common.hosts import addresses_of, dial
from common.http.client import make_session
from common.http.resolver import Resolver
from common.names import bind_address, is_localhost
from tests.ports import free_port


@asynccontextmanager
async def server_at(address: str) -> AsyncIterator[int]:
    """Answers 200 to whatever comes at `address`; yields the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.append(writer)
        with suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        writer.close()

    answering: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(answer, address, 0) as listening:
        yield listening.sockets[0].getsockname()[1]
    for writer in answering:
        writer.close()
        await writer.wait_closed()


def resolving_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> Callable[..., Any]:
    """Make every name resolve to `addresses`, in this order."""

    async def getaddrinfo(_host: str, port: int | None, **_more: Any) -> list[Any]:
        return [socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0] for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return getaddrinfo


@pytest.mark.parametrize(
    ("host", "address"),
    [("localhost", "127.0.0.1"), ("LocalHost.", "127.0.0.1"), ("::1", "::1"), ("0.0.0.0", "0.0.0.0"), ("n1", "n1")],
)
def test_bind_address_of_a_name_is_one_that_every_machine_has_W52(host: str, address: str) -> None:
    assert bind_address(host) == address
    assert is_localhost(host) is (address == "127.0.0.1")


async def test_localhost_asked_means_both_loopbacks_whatever_the_resolver_says_W17(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolving_to(monkeypatch, "192.0.2.7")
    assert await addresses_of("localhost") == ("127.0.0.1", "::1")
    assert [one["host"] for one in await Resolver().resolve("localhost", 80)] == ["127.0.0.1", "::1"]
    assert [one["host"] for one in await Resolver().resolve("localhost", 80, socket.AF_INET6)] == ["::1"]


async def test_name_asked_means_all_its_addresses_ipv4_first_and_each_once_W17(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving_to(monkeypatch, "2001:db8::1", "192.0.2.1", "2001:db8::1", "192.0.2.2")
    expected = ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
    assert list(await addresses_of("gpu1")) == expected
    assert list(dict.fromkeys(one["host"] for one in await Resolver().resolve("gpu1", 80))) == expected


async def test_address_asked_is_itself_without_a_lookup_W17(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", None)
    assert await addresses_of("192.0.2.1") == ("192.0.2.1",)
    assert await addresses_of("::1") == ("::1",)


async def test_dial_tries_all_addresses_and_says_which_took_it_W17() -> None:
    async with server_at("127.0.0.1") as port:
        for addresses in (["127.0.0.2", "::1", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"]):
            reached, where = await dial(addresses, port)
            reached.close()
            assert where == "127.0.0.1"


async def test_dial_that_fails_everywhere_says_why_W17() -> None:
    with pytest.raises(ConnectionRefusedError):
        await dial(["127.0.0.1", "127.0.0.2", "::1"], free_port())
    with pytest.raises(
        ConnectionRefusedError, match=r"Multiple.*unreachable"
    ):  # one refuses, to the other there is no way
        await dial(["127.0.0.1", "255.255.255.255"], free_port())


async def test_session_reaches_localhost_wherever_its_server_listens_W17() -> None:
    async with make_session(timeout_s=5) as session:
        for address in ("::1", "127.0.0.1"):
            async with server_at(address) as port, session.get(f"http://localhost:{port}/") as answer:
                assert await answer.text() == "ok"
