"""How the data plane finds its way to a replica."""

import asyncio
import socket
from typing import Any

import pytest

from common import hosts
from common.names import is_address
from tests.router.fakes import Call, FakeReplica, Plane, plain

BODY = b'{"model":"m"}'


async def fine(call: Call) -> None:
    await call.send(plain(b'{"ok":1}'))


async def replica_at(plane: Plane, address: str) -> FakeReplica:
    replica = await FakeReplica(fine).start(address)
    plane.replicas.append(replica)
    return replica


def name_means(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Every name resolves to `addresses`, in this order."""

    async def getaddrinfo(host: str, port: int | None, **_more: Any) -> list[Any]:
        means = [host] if is_address(host) else addresses  # uvloop asks for an address, too, as it connects
        return [socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0] for address in means]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("address", ["::1", "127.0.0.1"])
async def test_localhost_reaches_a_server_on_either_loopback_W17(plane: Plane, address: str) -> None:
    replica = await replica_at(plane, address)
    [endpoint] = plane.route(replica, host="localhost")
    assert [(await plane.post(BODY)).status for _ in range(2)] == [200, 200]
    assert plane.engine.connector.pool(endpoint).address == address


async def test_name_whose_first_address_refuses_is_reached_at_another_and_that_is_remembered_W17(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = await replica_at(plane, "127.0.0.3")
    name_means(monkeypatch, "127.0.0.2", "127.0.0.3")
    dialled: list[list[str]] = []

    async def dial(addresses: list[str], port: int) -> tuple[socket.socket, str]:
        dialled.append(addresses)
        return await hosts.dial(addresses, port)

    monkeypatch.setattr("router.proxy.connector.dial", dial)
    [endpoint] = plane.route(replica, host="gpu1")
    assert (await plane.post(BODY)).status == 200
    plane.engine.connector.pool(endpoint).close()
    assert (await plane.post(BODY)).status == 200
    assert dialled == [["127.0.0.2", "127.0.0.3"], ["127.0.0.3", "127.0.0.2"]]


async def test_name_that_is_refused_at_every_address_is_nobody_there_W17(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_means(monkeypatch, "127.0.0.2", "::1")
    silent = await replica_at(plane, "127.0.0.1")
    [endpoint] = plane.route(silent, host="gpu1")
    assert (await plane.post(BODY)).status == 503
    assert plane.engine.outliers.ejected(plane.engine.now()) == [endpoint.id]


@pytest.mark.parametrize(
    ("path", "prefix", "asked"),
    [
        ("/v1/chat/completions", "/v1", "/team-a/v1/chat/completions"),
        ("/chat/completions", "/v1", "/team-a/v1/chat/completions"),
        ("/v1/chat/completions", None, "/team-a/v1/chat/completions"),
        ("/v1/chat/completions", "", "/team-a/chat/completions"),
        ("/tokenize", "/v1", "/team-a/tokenize"),
    ],
)
async def test_base_path_goes_before_the_path_that_the_replica_serves_W19(
    plane: Plane, path: str, prefix: str | None, asked: str
) -> None:
    replica = await plane.add(fine)
    plane.route(replica, base_path="/team-a", api_prefix=prefix)
    assert (await plane.post(BODY, path)).status == 200
    assert replica.calls[0].line == f"POST {asked} HTTP/1.1".encode()


async def test_replica_is_shown_its_own_key_and_never_the_clients_W3(plane: Plane) -> None:
    replica, other = await plane.add(fine), await plane.add(fine)
    client = "authorization: Bearer of-the-client\r\nX-Api-Key: of-the-client\r\nuser-agent: u\r\n"
    plane.route(replica, authorization="Bearer of-the-replica")
    assert (await plane.post(BODY, headers=client)).status == 200
    [call] = replica.calls
    assert (call.header("authorization"), call.header("user-agent")) == ("Bearer of-the-replica", "u")
    assert call.head.lower().count(b"authorization:") == 1
    assert b"of-the-client" not in call.head
    plane.route(other)  # without keys of anybody, the client's goes on (the contract)
    assert (await plane.post(BODY, headers=client)).status == 200
    assert other.calls[0].header("authorization") == "Bearer of-the-client"


async def test_key_that_changes_is_used_from_the_next_request_on_W3(plane: Plane) -> None:
    replica = await plane.add(fine)
    for key in ("Bearer old", "Bearer new", None):
        plane.route(replica, authorization=key)
        assert (await plane.post(BODY)).status == 200
    assert [call.header("authorization") for call in replica.calls] == ["Bearer old", "Bearer new", None]
