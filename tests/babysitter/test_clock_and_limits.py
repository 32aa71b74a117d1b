"""A babysitter whose clock is moved, and servers that run out of descriptors."""

import json
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.babysitter.real import light, running, until

FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
HEARTBEAT_S = 0.5
RECORDS = 2
"""A babysitter keeps its own record and its server's."""


class Heard(ThreadingHTTPServer):
    """A registry that takes everything and remembers when it heard a heartbeat."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.at: list[float] = []

    def since(self, then: float) -> list[float]:
        """The heartbeats from `then` on."""
        return [at for at in self.at if at >= then]


class _Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/heartbeat") and isinstance(self.server, Heard):
            self.server.at.append(time.monotonic())
        self._send()

    def do_DELETE(self) -> None:
        self._send()

    def _send(self) -> None:
        raw = json.dumps({"status": "ok"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def heard() -> Iterator[Heard]:
    with Heard() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.skipif(FAKETIME is None, reason="needs Debian's package faketime to move one process's clock")
def test_clock_that_jumps_an_hour_restarts_nothing_and_bursts_nothing_B12(tmp_path: Path, heard: Heard) -> None:
    offset = tmp_path / "offset"

    def jump(text: str) -> None:
        beside = offset.with_suffix(".new")
        beside.write_text(f"{text}\n")
        beside.replace(offset)

    def hours_off(word: str) -> int:
        """By how many hours the time of the newest move to state `word` is off."""
        moves = [move for move in node.state()["memory"]["timeline"] if move["to"] == word]
        return round((datetime.fromisoformat(moves[-1]["at"]) - datetime.now(UTC)) / timedelta(hours=1))

    def survive(text: str, hours: int, pid: int, restarts: int) -> int:
        """Jump, watch the heartbeats, then kill the server; returns the next one's pid."""
        jump(text)
        jumped = time.monotonic()
        until("later heartbeats", lambda: len(heard.since(jumped)) >= 4 * RECORDS)
        took = time.monotonic() - jumped
        assert len(heard.since(jumped)) <= RECORDS * (took / (0.9 * HEARTBEAT_S) + 2)
        assert node.ready() == pid
        assert node.health()["restart_count"] == restarts
        os.kill(pid, signal.SIGKILL)
        until("a new server", lambda: node.report().get("replica_pid") not in (None, pid), 30)
        new = node.ready(30)
        until("state", lambda: node.state()["replica_pid"] == new)
        assert hours_off("starting") == hours  # the clock did jump
        return new

    jump("+0")
    env = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    registry = f"http://127.0.0.1:{heard.server_port}"
    often = {"heartbeat_interval": HEARTBEAT_S, "restart_delay": 0.5}
    with light(tmp_path, restarts=often, top={"registry_url": registry}) as node:
        node.start(env=env)
        pid = node.ready()
        pid = survive("+3600", 1, pid, 0)
        survive("-3600", -1, pid, 1)


def test_server_without_descriptors_is_reported_and_not_restarted_at_once_A17(tmp_path: Path) -> None:
    backend = {"type": "mock", "models": ["m"], "args": ["--idle-close-s", "0.1"]}
    with running(tmp_path, backend=backend, probes={"unhealthy_after": 2}) as node:
        node.start()
        pid = node.ready()
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (4, hard))
        told = node.status("unhealthy")
        assert told["error_message"]
        assert told["replica_pid"] == pid
        time.sleep(1)
        assert node.report()["status"] == "unhealthy"
        assert node.health()["restart_count"] == 0
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert node.ready() == pid
        assert node.health()["restart_count"] == 0
