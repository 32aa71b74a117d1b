"""What counts as a ready server."""

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import ResolveResult
from aiohttp.test_utils import TestServer

from babysitter.identity import identify
from babysitter.mock.knobs import Knobs
from babysitter.mock.server import SERVER, make_app
from babysitter.mock.server import MockServer as Mock
from babysitter.probe import NotListening, NotReady, ServerProbe, stranger_on_port
from common.discovery.model_list import parse_models
from tests.babysitter.real import until
from tests.common.model_server import model_server


@pytest.fixture
async def mock() -> AsyncIterator[TestServer]:
    app = make_app(Mock("mock-1", ["a", "b"], Knobs()))
    server = TestServer(app)
    async with server:
        yield server


async def look(
    server: TestServer,
    *,
    knobs: Knobs | None = None,
    expected: tuple[str, ...] = (),
    configured: tuple[str, ...] = (),
    health_path: str = "",
) -> list[str]:
    app: web.Application = server.app
    app[SERVER].knobs = knobs or Knobs()
    async with aiohttp.ClientSession() as session:
        probe = ServerProbe(
            session=session, timeout_s=2, expected=expected, configured=configured, health_path=health_path
        )
        return [str(model["id"]) for model in await probe.look(str(server.make_url("")).rstrip("/"))]


@pytest.mark.parametrize("knobs", [Knobs(), Knobs(models_call="list"), Knobs(paths="bare"), Knobs(paths="v1")])
async def test_models_are_found_in_either_form(mock: TestServer, knobs: Knobs) -> None:
    assert await look(mock, knobs=knobs) == ["a", "b"]


@pytest.mark.parametrize("call", ["missing", "empty", "broken"])
async def test_models_of_a_server_that_tells_none_come_from_the_settings(mock: TestServer, call: str) -> None:
    knobs = Knobs.model_validate({"models_call": call})
    assert await look(mock, knobs=knobs, configured=("x",)) == ["x"]
    with pytest.raises(NotReady, match=r"/v1/models"):
        await look(mock, knobs=knobs)
    with pytest.raises(NotReady, match=r"/health: status 503"):
        await look(mock, knobs=knobs.model_copy(update={"health_status": 503}), configured=("x",))


async def test_unhealthy_server_is_not_ready_when_its_health_counts(mock: TestServer) -> None:
    sick = Knobs(health_status=500)
    assert await look(mock, knobs=sick) == ["a", "b"]
    with pytest.raises(NotReady, match="/health: status 500"):
        await look(mock, knobs=sick, health_path="/health")


async def test_server_of_another_model_is_not_ready_A15(mock: TestServer) -> None:
    with pytest.raises(NotReady, match="serves a, b, not the expected c"):
        await look(mock, expected=("a", "c"))


async def test_closed_port_is_not_ready() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(NotListening, match=r"^connection refused at 127\.0\.0\.1:1$"):
            await ServerProbe(session=session, timeout_s=2).look("http://127.0.0.1:1")


async def test_a_port_closed_on_both_families_is_told_in_one_reason_W33(monkeypatch: pytest.MonkeyPatch) -> None:
    # As a server at `localhost` is asked: the reason lasts for minutes while a model loads, in every place that shows it.
    async def both(*_: object, **__: object) -> list[ResolveResult]:
        return [
            ResolveResult(hostname="localhost", host=host, port=1, family=family, proto=0, flags=0)
            for host, family in (("::1", socket.AF_INET6), ("127.0.0.1", socket.AF_INET))
        ]

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", both)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver())) as session:
        with pytest.raises(NotListening, match=r"^connection refused at localhost:1$"):
            await ServerProbe(session=session, timeout_s=2).look("http://localhost:1")


async def test_silent_server_is_not_ready() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(NotReady, match=r"no answer within 0\.2 s") as told:
                await ServerProbe(session=session, timeout_s=0.2).look(url)
            assert not isinstance(told.value, NotListening)  # it listens


@pytest.mark.parametrize(
    ("raw", "ids"),
    [
        (b'{"data":[{"id":"a"}]}', ["a"]),
        (b'{"models":[{"id":"a"}]}', ["a"]),
        (b'[{"id":"a"},{"id":"b"}]', ["a", "b"]),
        (b'["a"]', ["a"]),
        (b'{"data":[]}', []),
        (b'{"data":[{"name":"a"},7,null]}', []),
    ],
)
def test_parse_models_takes_what_the_field_sends(raw: bytes, ids: list[str]) -> None:
    assert [model["id"] for model in parse_models(raw)] == ids


@pytest.mark.parametrize("raw", [b"", b"{", b"7", b'{"data":{}}', b"<html>", b"\xff"])
def test_parse_models_refuses_anything_else(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"no JSON|no list"):
        parse_models(raw)


LISTENER = (
    "import socket,time; s=socket.create_server(('127.0.0.1',0)); print(s.getsockname()[1],flush=True); time.sleep(60)"
)


@pytest.mark.parametrize("ours", [True, False])
def test_listener_is_known_as_a_member_A15(ours: bool) -> None:  # noqa: FBT001 - a row of two
    with subprocess.Popen([sys.executable, "-c", LISTENER], stdout=subprocess.PIPE) as listener:
        try:
            assert listener.stdout is not None
            port = int(listener.stdout.readline())
            found = identify(listener.pid if ours else os.getpid())
            assert found is not None
            told = until("seen", lambda: stranger_on_port(port, lambda: [found]) or "ours")
            assert told == "ours" if ours else f"pid {listener.pid} (" in told
        finally:
            listener.kill()


def test_free_port_has_no_stranger() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        assert stranger_on_port(probe.getsockname()[1], list) is None


@pytest.mark.parametrize("count", [1, 338, 2000])
async def test_model_list_that_comes_in_two_packets_is_ready_W14(count: int) -> None:
    names = [f"model-{number}" for number in range(count)]
    async with model_server(*names) as server, aiohttp.ClientSession() as session:
        models = await ServerProbe(session=session, timeout_s=5).look(server.url)
    assert [model["id"] for model in models] == names
