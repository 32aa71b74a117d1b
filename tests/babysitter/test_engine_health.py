"""When an engine is asked for a token: at its start, when idle, when in doubt, when it has work and does not move."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestServer

from babysitter import ports
from babysitter.assemble import make_engine, make_spec
from babysitter.engine_health import EngineHealth
from babysitter.engine_metrics import Work
from babysitter.probe import NotReady
from babysitter.settings import BabysitterSettings
from common.clock import SystemClock
from tests.babysitter.real import ask, running, until
from tests.ports import free_port


class Time:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Token:
    is_wanted = True

    def __init__(self) -> None:
        self.asked = 0
        self.fails = False

    async def ask(self, _url: str, _model: str, *, timeout_s: float) -> None:  # noqa: ARG002 - a fake
        self.asked += 1
        if self.fails:
            raise NotReady("no token")


class Rig:
    """An engine's health over a fake token, a fake clock and a real metrics call."""

    def __init__(self, session: aiohttp.ClientSession, metrics_path: str | None) -> None:
        self.token, self.time, self.text, self.url, self.port = Token(), Time(), "", "", free_port()
        self.status, self.served = 200, 0
        self.rubbish: dict[str, Any] | None = None
        self.health = EngineHealth(
            cast("Any", self.token),
            session,
            clock=cast("Any", self.time),
            metrics_path=metrics_path,
            start_timeout_s=120,
            idle_timeout_s=20,
            interval_s=60,
        )

    async def look(self, after_s: float, text: str = "") -> int:
        """Look once more, `after_s` later; how many tokens that took."""
        before, self.text = self.token.asked, text
        self.time.now += after_s
        await self.health.look(self.url, "m", self.port)
        return self.token.asked - before

    async def serve(self, _request: web.Request) -> web.Response:
        self.served += 1
        return web.Response(**(self.rubbish or {"text": self.text, "status": self.status}))


@pytest.fixture(params=["/metrics", None])
async def rig(request: pytest.FixtureRequest) -> Any:
    async with aiohttp.ClientSession() as session:
        made = Rig(session, request.param)
        app = web.Application()
        app.router.add_get("/metrics", made.serve)
        async with TestServer(app) as server:
            made.url = str(server.make_url("")).rstrip("/")
            yield made


def vllm(running: int, tokens: int) -> str:
    return f'vllm:num_requests_running{{m="x"}} {running}\nvllm:generation_tokens_total{{m="x"}} {tokens}\n'


async def test_idle_engine_is_asked_once_in_an_interval_W45(rig: Rig) -> None:
    assert [await rig.look(30, vllm(0, 5)) for _ in range(6)] == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("rig", ["/metrics"], indirect=True)
async def test_busy_engine_that_moves_is_never_asked(rig: Rig) -> None:
    assert [await rig.look(59, vllm(3, tokens)) for tokens in range(1, 10)] == [0] * 9
    assert rig.health.work == Work(running=3, steps=9)


@pytest.mark.parametrize("rig", ["/metrics"], indirect=True)
async def test_engine_with_work_that_does_not_move_is_asked_W45(rig: Rig) -> None:
    assert await rig.look(1, vllm(3, 7)) == 0
    assert await rig.look(58, vllm(3, 7)) == 0
    assert await rig.look(2, vllm(3, 7)) == 1


@pytest.mark.parametrize("rig", ["/metrics"], indirect=True)
async def test_busy_engine_whose_counters_move_only_at_the_end_is_left_alone(rig: Rig) -> None:
    assert await rig.look(600, "sglang:num_running_reqs 1\nsglang:generation_tokens_total 3\n") == 0
    assert await rig.look(1, "sglang:num_running_reqs 0\nsglang:generation_tokens_total 9\n") == 1


async def test_doubted_engine_is_asked_at_every_look_until_it_answers_W45(rig: Rig) -> None:
    rig.health.doubt()
    rig.token.fails = True
    for _ in range(3):
        with pytest.raises(NotReady, match="no token"):
            await rig.look(1)
    rig.token.fails = False
    assert [await rig.look(1), await rig.look(1)] == [1, 0]


@pytest.mark.parametrize("rig", [None], indirect=True)
async def test_engine_that_tells_nothing_is_not_asked_while_a_client_is_connected(rig: Rig) -> None:
    client = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); sys.stdin.read()"
    with (
        socket.create_server(("127.0.0.1", rig.port)),
        subprocess.Popen([sys.executable, "-c", client, str(rig.port)], stdin=subprocess.PIPE) as other,
    ):
        until("connected", lambda: ports.clients(rig.port))
        assert await rig.look(61) == 0
        assert other.stdin is not None
        other.stdin.close()
        other.wait(10)
        until("gone", lambda: not ports.clients(rig.port))
        assert await rig.look(1) == 1


@pytest.mark.parametrize("rig", ["/metrics"], indirect=True)
@pytest.mark.parametrize(("status", "asked"), [(200, 1), (404, 1), (501, 1), (503, 4)])
async def test_server_that_tells_no_work_is_asked_for_it_once_in_its_life_W45(
    rig: Rig, status: int, asked: int
) -> None:
    rig.status = status
    for _ in range(4):
        await rig.look(1, "process_open_fds 3\n")
    assert (rig.served, rig.health.work) == (asked, None)
    rig.status = 200
    await rig.health.start(rig.url, "m")
    await rig.look(1, vllm(2, 5))
    assert rig.health.work == Work(running=2, steps=5)


RUBBISH: dict[str, Any] = {
    "binary": {"body": b"\x00\xff", "content_type": "text/plain"},
    "html": {"text": "<html></html>", "content_type": "text/html"},
    "of another type": {"text": vllm(3, 5), "content_type": "application/json"},
    "twice": {"text": vllm(3, 5) * 2},
    "endless": {"text": vllm(3, 5) + "x 1\n" * (1 << 20)},
}


@pytest.mark.parametrize("rig", ["/metrics"], indirect=True)
@pytest.mark.parametrize("kind", RUBBISH)
async def test_rubbish_tells_nothing_is_named_once_and_is_looked_at_again_after_a_while_A21(
    rig: Rig, kind: str
) -> None:
    rig.rubbish = RUBBISH[kind]
    with structlog.testing.capture_logs() as lines:
        asked = [await rig.look(1) for _ in range(100)]
    assert rig.health.work is None
    assert rig.served == 2  # at once, and 60 s later
    assert sum(asked) == 1  # of an engine that does not tell, a token proves it
    [line] = lines
    assert (line["event"], line["url"]) == ("engine.metrics_passed_over", f"{rig.url}/metrics")
    rig.rubbish = None
    await rig.look(60, vllm(2, 5))
    assert rig.health.work == Work(running=2, steps=5)


@pytest.mark.parametrize("rig", ["/metrics"], indirect=True)
async def test_figure_that_cannot_be_true_is_named_once_and_costs_no_other_A21(rig: Rig) -> None:
    with structlog.testing.capture_logs() as lines:
        for tokens in range(5):
            await rig.look(1, vllm(3, tokens) + "vllm:kv_cache_usage_perc NaN\n")
    assert rig.health.work == Work(running=3, steps=4, odd=("vllm:kv_cache_usage_perc nan",))
    assert [line["reasons"] for line in lines] == [("vllm:kv_cache_usage_perc nan",)]


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"backend": {"type": "command", "command": "sh vllm serve m"}}, ["/metrics"]),
        ({"backend": {"type": "command", "command": "sh"}, "metadata": {"metrics_path": "/m"}}, ["/m"]),
        ({"backend": {"type": "command", "command": "sh"}, "metadata": {"metrics_path": None}}, []),
    ],
)
async def test_engine_of_any_command_is_asked_for_its_work_W45(settings: Any, asked: list[str]) -> None:
    made = BabysitterSettings.model_validate({"port": 8100, **settings})
    spec = make_spec(made, environ=dict(os.environ), clock=SystemClock(), mark="m")
    paths = []

    async def serve(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.Response(text=vllm(1, 2))

    app = web.Application()
    app.router.add_get("/{any}", serve)
    async with aiohttp.ClientSession() as session, TestServer(app) as server:
        engine = make_engine(made, spec, session, SystemClock())
        await engine.look(str(server.make_url("")).rstrip("/"), "m", 1)
    assert paths == asked
    assert engine.work == (Work(1, None, 2.0) if asked else None)


def hung(tmp_path: Path, **probes: Any) -> Any:
    fast = {"interval_s": 0.2, "generate_interval_s": 1, "liveness_s": 3, "generate_timeout_s": 1}
    return running(tmp_path, probes={**fast, **probes})


def test_engine_that_hangs_behind_an_api_that_answers_is_restarted_W26(tmp_path: Path) -> None:
    with hung(tmp_path) as node:
        node.start()
        pid = node.ready()
        ask(f"http://127.0.0.1:{node.port}/mock/knobs", {"hold": True})
        assert node.server("/health")["status"] == "ok"
        assert node.server("/v1/models")["data"][0]["id"] == "m"
        until("restarted", lambda: node.report()["restart_count"] == 1)
        causes = [move["cause"] for move in node.state()["memory"]["timeline"]]
        assert any("no token within" in cause for cause in causes), causes
        assert node.ready() != pid


def test_engine_that_is_idle_is_asked_again_and_one_without_a_path_never_W45(tmp_path: Path) -> None:
    with hung(tmp_path) as asked, hung(tmp_path / "other", generate_path="") as other:
        for node in (asked, other):
            node.directory.mkdir(exist_ok=True)
            node.start()
        for node in (asked, other):
            node.ready()
        until("asked again and again", lambda: asked.server("/mock/state")["requests"] >= 3)
        assert other.server("/mock/state")["requests"] == 0
