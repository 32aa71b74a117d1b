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
    assert plane.engine.pool(endpoint).address == address


async def test_name_whose_first_address_refuses_is_reached_at_another_and_that_is_remembered_W17(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = await replica_at(plane, "127.0.0.3")
    name_means(monkeypatch, "127.0.0.2", "127.0.0.3")
    dialled: list[list[str]] = []

    async def dial(addresses: list[str], port: int) -> tuple[socket.socket, str]:
        dialled.append(addresses)
        return await hosts.dial(addresses, port)

    monkeypatch.setattr("router.proxy.engine.dial", dial)
    [endpoint] = plane.route(replica, host="gpu1")
    assert (await plane.post(BODY)).status == 200
    plane.engine.pool(endpoint).close()
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
