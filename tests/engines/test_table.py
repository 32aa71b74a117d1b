"""The table: every check over every engine, each started by our babysitter from its shipped example.

What an engine cannot do stands in tests/engines/catalogue.py, and is asked all the same. One engine runs for all checks; those
that kill it come last.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from babysitter import identity
from babysitter.token_probe import body_for
from tests.engines.catalogue import ENGINES
from tests.engines.checks import ASK_S, CHECKS, LONG, QUICK, SAID, SHORT, Up
from tests.engines.harness import START_S, engine_node, fleet, until
from tests.router.conftest import MakePlane
from tests.router.fakes import Plane, Reply, request
from tests.router.test_raw_responses import unchunk

pytestmark = pytest.mark.timeout(1800)
LIVENESS_S = 6


def rows(*names: str) -> list[Any]:
    """The engines; those that take minutes to install are asked by `script/test.sh --engines`."""
    return [
        pytest.param(name, marks=() if ENGINES[name].is_quick else pytest.mark.engines) for name in names or ENGINES
    ]


@pytest.fixture(scope="module", params=rows())
def up(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp(request.param)
    with (
        fleet(folder) as routed,
        engine_node(request.param, folder / "engine", registry=routed.registry.url) as node,
    ):
        made = Up(node, routed)
        node.probes = {"interval_s": QUICK["interval_s"]}  # so that rules taken over are in force within one look
        node.start()
        until("ready", lambda: look(made), START_S)
        routed.until_routed(node.model)
        yield made


def look(up: Up) -> bool:
    """Note what is said of the engine, and then whether it is true; True when it is ready."""
    said, routed = str(up.node.report().get("status")), up.model in up.fleet.models()
    up.start.append((said, routed, generates(up)))
    return said == "ready"


def generates(up: Up) -> bool:
    """Whether a request succeeds, at the engine itself."""
    path = up.node.engine.asked_at
    with contextlib.suppress(httpx.HTTPError):
        answer = httpx.post(f"{up.node.url}{path}", json={"model": up.model, **body_for(path)}, timeout=ASK_S)
        return answer.status_code == httpx.codes.OK
    return False


def test_engine_is_ready_and_routed_exactly_when_a_request_succeeds_W26_W51(up: Up) -> None:
    assert [seen for seen in up.start if seen[0] == "ready" and not seen[2]] == []
    assert [seen for seen in up.start if seen[1] and not seen[2]] == []
    assert not up.start[0][2]  # it was looked at before it could
    assert up.node.report()["restart_count"] == 0
    assert "probe.no_generating_call" not in up.node.log()
    if (seen := up.node.engine.tells_requests) is not None:
        assert len(re.findall(seen, up.node.output())) > 0  # by a real token: its own log says so


LONG_CHECKS = {"cancellation_before_the_answer"}  # llama.cpp takes its time


@pytest.mark.parametrize(
    "check", [pytest.param(name, marks=pytest.mark.engines if name in LONG_CHECKS else ()) for name in CHECKS]
)
def test_engine_does_what_its_row_says(up: Up, check: str) -> None:
    cannot = up.node.engine.cannot.get(check)
    with contextlib.nullcontext() if cannot is None else pytest.raises(AssertionError, match=cannot):
        CHECKS[check](up)


CHAT: dict[str, Any] = {"messages": SAID, **SHORT}
BYTES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat stream": ("/v1/chat/completions", {**CHAT, "stream": True}),
    "with usage": ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}),
    "completion stream": ("/v1/completions", {"prompt": "hello", **SHORT, "stream": True}),
    "responses stream": ("/v1/responses", {"input": "hello", "max_output_tokens": 16, "stream": True}),
    "messages stream": ("/v1/messages", {"messages": SAID, "max_tokens": 8, "stream": True}),
    "embeddings": ("/v1/embeddings", {"input": ["a", "b"]}),
    "rerank": ("/v1/rerank", {"query": "a", "documents": ["b", "c"]}),
    "too long": ("/v1/completions", {"prompt": LONG, **SHORT}),
    "too long a stream": ("/v1/completions", {"prompt": LONG, **SHORT, "stream": True}),
    "bad temperature": ("/v1/chat/completions", {**CHAT, "temperature": "hot"}),
}


class Tap:
    """Stands between the router and an engine, and keeps what the engine sends."""

    def __init__(self, port: int) -> None:
        self.engine_port = port
        self.sent: list[bytearray] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine, to_engine = await asyncio.open_connection("127.0.0.1", self.engine_port)
        kept = bytearray()
        self.sent.append(kept)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, copy: bytearray) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    copy += data
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, to_engine, bytearray()), pump(engine, writer, kept))


@pytest.fixture
async def tapped(up: Up, planes: MakePlane) -> AsyncIterator[tuple[Plane, Tap]]:
    """The data plane, reaching the engine through a tap."""
    tap, plane = Tap(up.node.port), await planes(first_byte_timeout_s=ASK_S, total_timeout_s=ASK_S)
    async with await asyncio.start_server(tap.serve, "127.0.0.1", 0) as server:
        plane.route(server.sockets[0].getsockname()[1], models=(up.model,))
        yield plane, tap
        plane.route()


@pytest.mark.parametrize("call", BYTES)
async def test_answers_and_errors_arrive_byte_for_byte_as_the_engine_sent_them(
    up: Up, tapped: tuple[Plane, Tap], call: str
) -> None:
    plane, tap = tapped
    path, body = BYTES[call]
    raw = request(json.dumps({"model": up.model, **body}).encode(), path)
    got = await plane.send(raw, wait_s=ASK_S, until_close=True)
    sent = Reply(bytes(tap.sent[-1]), closed=True)
    assert (got.status, got.header("content-type")) == (sent.status, sent.header("content-type"))
    assert len(payload(got)) > 0
    if path == "/v1/messages" and up.node.engine.messages_by_router:
        assert payload(got) != payload(sent)  # translated; `messages` of the checks reads it
        return
    assert payload(got) == payload(sent)
    assert len(tap.sent) == 1  # asked once


def payload(reply: Reply) -> bytes:
    """The body without its framing."""
    return unchunk(reply.body) if reply.header("transfer-encoding") == "chunked" else reply.body


def served(up: Up) -> int:
    """Requests that the engine's own log tells of."""
    told = up.node.engine.tells_requests
    assert told is not None
    return len(re.findall(told, up.node.output()))


TELLING = [name for name, engine in ENGINES.items() if engine.tells_requests is not None]


@pytest.mark.engines  # it waits, for what is not to happen
@pytest.mark.parametrize("up", rows(*TELLING), indirect=True)
def test_idle_engine_is_asked_again_and_never_once_that_is_switched_off_W45(up: Up) -> None:
    up.reload()
    before = served(up)
    until("asked again while idle", lambda: served(up) >= before + 3)
    up.reload(generate_interval_s=0)
    time.sleep(2)  # what was under way has ended
    before = served(up)
    time.sleep(3)
    assert served(up) == before


@pytest.mark.engines  # it waits, for what is not to happen
@pytest.mark.parametrize("up", rows(*(name for name in TELLING if ENGINES[name].endless)), indirect=True)
def test_busy_engine_is_never_asked_W45(up: Up) -> None:
    """One that stands still for an interval would be, as it should; a loaded machine is given time."""
    interval_s = 4
    up.reload(generate_interval_s=interval_s)
    body = {"model": up.model, "prompt": "hello", "stream": True, "temperature": 0, **up.node.engine.endless}
    before = served(up)
    with httpx.stream("POST", f"{up.fleet.url}/v1/completions", json=body, timeout=ASK_S) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        until("its log has it", lambda: served(up) > before)
        began, before = time.monotonic(), served(up)
        while time.monotonic() - began < 2 * interval_s:
            next(pieces)  # it writes all the time
        assert served(up) == before
    until("asked again once idle", lambda: served(up) > before)
    assert up.node.report()["restart_count"] == 0


@pytest.mark.parametrize("up", rows(), indirect=True)
def test_engine_that_hangs_is_restarted_after_its_liveness_time_and_says_why_W26_W45(up: Up) -> None:
    up.reload(liveness_s=LIVENESS_S)
    pid, restarts = up.node.ready(), up.node.report()["restart_count"]
    os.kill(up.node.engine.heart(up.node.processes(), pid), signal.SIGSTOP)
    stopped = time.monotonic()
    until("restarted", lambda: up.node.report().get("restart_count", 0) == restarts + 1)
    assert time.monotonic() - stopped > LIVENESS_S - QUICK["generate_interval_s"]
    assert re.search(up.node.engine.hung, up.node.log())
    assert up.node.ready() != pid
    until("it serves again", lambda: generates(up))


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if identity.start_ticks(pid) is not None]


class Load(threading.Thread):
    """Asks through the router until told to stop, and keeps what became of each request."""

    def __init__(self, up: Up) -> None:
        super().__init__(daemon=True)
        self.up, self.over, self.outcomes = up, threading.Event(), Counter[str]()

    def run(self) -> None:
        path = self.up.node.engine.asked_at
        body = {"model": self.up.model, **body_for(path)}
        if path == "/v1/completions":
            body |= {"max_tokens": 64, "stream": True}
        with httpx.Client(base_url=self.up.fleet.url, timeout=ASK_S) as client:
            while not self.over.is_set():
                try:
                    answer = client.post(path, json=body)
                    self.outcomes[outcome(answer)] += 1
                    if answer.status_code != httpx.codes.OK:
                        time.sleep(0.1)
                except httpx.RemoteProtocolError:
                    self.outcomes["cut"] += 1  # an answer that had begun


def outcome(answer: httpx.Response) -> str:
    """What a client sees: `whole`, or the error's code."""
    try:
        last = answer.text.removesuffix("data: [DONE]\n\n").strip().split("\n\n")[-1].removeprefix("data: ")
        error = json.loads(last).get("error")
    except (ValueError, AttributeError):
        error = answer.text
    if answer.status_code == httpx.codes.OK and not error:
        return "whole"
    return str(error.get("code") or error.get("type")) if isinstance(error, dict) else f"unclear: {error!r}"


def test_engine_killed_under_load_fails_clearly_and_comes_back_whole_W50(up: Up) -> None:
    up.reload()
    pid, restarts = up.node.ready(), up.node.report()["restart_count"]
    family = up.node.processes()
    loads = [Load(up) for _ in range(4)]
    for load in loads:
        load.start()
    until("all are served", lambda: all(load.outcomes["whole"] > 1 for load in loads))
    os.kill(pid, signal.SIGKILL)
    until("all of it ended", lambda: not alive(family))
    until("restarted", lambda: up.node.report().get("restart_count", 0) == restarts + 1)
    assert up.node.ready() != pid
    before = [load.outcomes["whole"] for load in loads]
    until(
        "all are served again", lambda: all(load.outcomes["whole"] > n for load, n in zip(loads, before, strict=True))
    )
    for load in loads:
        load.over.set()
    for load in loads:
        load.join(ASK_S)
        assert not load.is_alive()
    outcomes = sum((load.outcomes for load in loads), Counter[str]())
    assert [name for name in outcomes if name.startswith("unclear")] == [], outcomes
    until("nothing is left in the router", lambda: up.fleet.service(up.node.port).get("in_flight") == 0)


def test_engine_outlives_its_babysitter_and_is_adopted_whole_W25(up: Up) -> None:
    pid, family = up.node.ready(), up.node.processes()
    up.node.babysitters[-1].kill()
    up.node.babysitters[-1].wait()
    assert generates(up)
    up.node.start()
    assert up.node.ready() == pid
    assert set(family) <= set(up.node.processes())
    assert generates(up)


def test_engine_is_stopped_without_a_trace_W50(up: Up) -> None:
    up.node.ready()
    family = up.node.processes()
    memory = shared_memory(family)
    up.node.stop()
    assert up.node.babysitters[-1].wait(60) == 0
    assert alive(family) == []
    assert [path for path in memory if Path(path).exists()] == []
    until("the router has forgotten it", lambda: up.model not in up.fleet.models())


def shared_memory(pids: list[int]) -> set[str]:
    """Files of /dev/shm that these processes have mapped."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it may have ended
            found |= set(re.findall(r" (/dev/shm/\S+)$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE))
    return found
