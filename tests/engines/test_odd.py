"""Engines with bad habits, each a real llama.cpp: what becomes of them, and in which words it is told."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.engines.checks import ASK_S, SAID, Up
from tests.engines.harness import EngineNode, engine_node, fleet, until
from tests.engines.install import HERE

pytestmark = pytest.mark.timeout(1200)


@contextlib.contextmanager
def odd(habit: str, directory: Path, registry_url: str | None = None) -> Iterator[EngineNode]:
    """The example's llama-server, with that habit; the file `switch` beside its folder changes its mind."""
    with engine_node("llama_cpp", directory / "engine", registry=registry_url) as node:
        assert node.change.path is not None
        program, real = node.change.path / "llama-server", node.change.path / "real-llama-server"
        program.rename(real)
        words = f'{sys.executable} {HERE / "odd_server.py"} {habit} {directory / "switch"} {real} "$@"'
        program.write_text(f"#!/bin/sh\nexec {words}\n")
        program.chmod(0o755)
        yield node


def test_engine_that_lists_its_model_before_it_can_generate_waits_and_says_for_what_W26_W33(tmp_path: Path) -> None:
    with odd("loads", tmp_path) as node:
        node.start()
        until("it lists its model", lambda: (node.server("/v1/models") or {}).get("data"))
        until("it says why it waits", lambda: "Loading model" in node.log() + str(node.health()) + str(node.report()))
        assert node.report()["status"] == "waiting_for_ready"
        (tmp_path / "switch").touch()
        node.ready()


def test_engine_that_lists_another_model_is_never_ready_and_says_which_W33(tmp_path: Path) -> None:
    with engine_node("llama_cpp", tmp_path / "engine", args=("--alias", "other")) as node:
        node.start()
        said = "serves other, not the expected llama-3.1-8b"
        until("it says so", lambda: said in node.log() + str(node.health()) + str(node.report()))
        assert node.report()["status"] == "waiting_for_ready"


@pytest.mark.engines  # the router's part is in tests/router, too, with less around it
def test_stream_that_stands_still_at_its_end_is_ended_by_the_router_W44(tmp_path: Path) -> None:
    with (
        fleet(tmp_path, "--idle-timeout-s", "3") as routed,
        odd("stays", tmp_path, routed.registry.url) as node,
    ):
        node.start()
        node.ready()
        routed.until_routed(node.model)
        body = {"model": node.model, "messages": SAID, "max_tokens": 4, "stream": True}
        text = read(routed.url, body)
        assert '"finish_reason":"length"' in text
        assert '"idle_timeout"' in text
        until("nothing is left", lambda: routed.service(node.port)["in_flight"] == 0)


@pytest.mark.engines  # the router's part is in tests/router, too, with less around it
def test_stream_without_an_end_is_ended_in_its_time_and_the_engine_with_it(tmp_path: Path) -> None:
    with (
        fleet(tmp_path, "--proxy-timeout-seconds", "5") as routed,
        engine_node("llama_cpp", tmp_path / "engine", registry=routed.registry.url) as node,
    ):
        node.start()
        node.ready()
        routed.until_routed(node.model)
        body = {"model": node.model, "messages": SAID, "stream": True, **node.engine.endless}
        text = read(routed.url, body)
        assert "not answered within 5 s" in text
        assert '"request_timeout"' in text
        until("the engine has stopped", lambda: Up(node, routed).work().running == 0)
        assert node.report()["restart_count"] == 0


def read(url: str, body: dict[str, object]) -> str:
    """A whole stream, however it ends."""
    pieces: list[str] = []
    with (
        contextlib.suppress(httpx.RemoteProtocolError),
        httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=ASK_S) as answer,
    ):
        pieces.extend(answer.iter_text())
    return "".join(pieces)


def test_engine_whose_metrics_are_rubbish_is_served_from_and_asked_for_tokens(tmp_path: Path) -> None:
    with odd("rubbish", tmp_path) as node:
        node.probes = {"interval_s": 0.5, "generate_interval_s": 1, "liveness_s": 6}
        node.start()
        node.ready()
        seen = node.engine.tells_requests or ""
        before = node.output().count(seen)
        until("asked while idle", lambda: node.output().count(seen) > before + 2)
        until("it says so", lambda: "engine.metrics_passed_over" in node.log())
        assert node.report().get("running") is None
        assert node.report()["status"] == "ready"
        assert node.report()["restart_count"] == 0
