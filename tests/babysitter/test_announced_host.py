"""`host` is what others are told (BABYSITTER_HOST, `--host`): it is listened on where this machine has it."""

import signal
import socket
import threading
from pathlib import Path

import pytest
from aiohttp import web

from babysitter import assemble, ports
from babysitter.assemble import make_addresses, other_hosts, settle_host
from babysitter.settings import BabysitterSettings
from common.exits import ConfigurationError
from common.http.serve import Address, bound_port, start
from tests.babysitter.real import ask, running, until
from tests.ports import free_port

ELSEWHERE = "192.0.2.7"
"""An address of RFC 5737's documentation, which no machine has."""


def settled(host: str, **more: object) -> BabysitterSettings:
    given = {"port": 8001, "host": host, "backend": {"type": "mock", "models": ["m"]}, **more}
    return settle_host(BabysitterSettings.model_validate(given))


@pytest.mark.parametrize(
    ("host", "listens"), [(ELSEWHERE, "0.0.0.0"), ("2001:db8::7", "::"), ("no-such-host.invalid", "0.0.0.0")]
)
def test_an_address_of_another_machine_is_announced_and_reached_by_listening_everywhere_W38(
    host: str, listens: str
) -> None:
    chosen = settled(host)
    addresses = make_addresses(chosen, None)
    assert (addresses.bind, addresses.record, addresses.endpoint) == (listens, host, host)
    assert addresses.local in ("127.0.0.1", "::1")


def test_brackets_of_a_url_are_none_of_the_hosts() -> None:
    assert settled("[::1]").host == settled("::1").host == "::1"
    assert settled("localhost", advertise_host="[2001:db8::7]").advertise_host == "2001:db8::7"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.3", "0.0.0.0", "::"])
def test_loopback_and_wildcards_are_listened_on_as_they_are_W38(host: str) -> None:
    assert settled(host).host == host
    assert settled(host, advertise_host="other").advertise_host == "other"
    assert other_hosts(host) == ()


def test_an_address_of_this_machine_is_listened_on_and_loopback_too_W38(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_binds", lambda _address: True)
    chosen = settled(ELSEWHERE)
    assert (chosen.host, chosen.advertise_host) == (ELSEWHERE, None)
    assert other_hosts(chosen.host) == ("127.0.0.1",)


def test_a_name_that_is_loopback_here_alone_is_another_address_to_others_W38(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian writes `127.0.1.1 thishost` into /etc/hosts, and BABYSITTER_HOST=$(hostname) is what people write."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_n: [(0, 0, 0, "", ("127.0.1.1", 0))])
    chosen = settled("thishost")
    assert (chosen.host, chosen.advertise_host) == ("0.0.0.0", "thishost")


async def test_a_server_listens_on_every_host_it_was_told_W38() -> None:
    port = free_port()
    runner = await start(
        web.Application(), Address("127.0.0.2", port), drain_timeout_s=1, what="x", also=("127.0.0.1",)
    )
    try:
        assert bound_port(runner) == port
        for host in ("127.0.0.2", "127.0.0.1"):
            socket.create_connection((host, port), timeout=5).close()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.3", port), timeout=5)
    finally:
        await runner.cleanup()


async def test_a_second_host_whose_port_is_taken_is_named_W38() -> None:
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(ConfigurationError, match=f"127.0.0.1:{port} is taken"),
    ):
        await start(web.Application(), Address("127.0.0.2", port), drain_timeout_s=1, what="x", also=("127.0.0.1",))


def test_a_babysitter_behind_nat_is_ready_and_tells_its_announced_address_W38(tmp_path: Path) -> None:
    with running(tmp_path, top={"host": ELSEWHERE}) as node:
        node.start()
        node.ready()
        info = ask(f"http://127.0.0.1:{node.port + 1}/info")
        assert (info["host"], info["url"]) == (ELSEWHERE, f"http://{ELSEWHERE}:{node.port + 1}")
        assert info["replica"]["endpoint"] == f"http://{ELSEWHERE}:{node.port}"
        assert ask(f"http://127.0.0.1:{node.port + 1}/timeline")["error"].startswith("a bearer token")
        until("said", lambda: "host.not_of_this_machine" in node.log())


def test_a_reload_does_not_take_the_announced_host_for_a_change_W38(tmp_path: Path) -> None:
    with running(tmp_path, top={"host": ELSEWHERE}, restarts={"heartbeat_interval": 1}) as node:
        babysitter = node.start()
        node.ready()
        node.restarts["heartbeat_interval"] = 2
        assert node.config.exists()
        babysitter.send_signal(signal.SIGHUP)
        until("reloaded", lambda: "config.reloaded" in node.log())
        assert node.health()["need_restart"] == []


def test_the_wait_for_a_silent_resolver_is_bounded_W38(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = threading.Event()

    def never(*_args: object, **_named: object) -> list[tuple[object, ...]]:
        silent.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", never)
    monkeypatch.setattr(ports, "LOOK_UP_WAIT_S", 0.05)
    assert not ports.is_here("some-name")
    silent.set()
    assert assemble.other_hosts("some-name") == ("127.0.0.1",)
