"""A real partition: the router and a replica on two hosts, the link between them cut under load, and mended."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.babysitter.real import until
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.world,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes hosts of its own, which only root may"),
]
NEAR, FAR = "10.77.0.1", "10.77.0.2"
CUT_S = 20.0
BACK_S = 8.0
"""A probe of a replica in doubt every 5 s, the second good one 1 s after it, and their answers."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def started(*argv: str, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as out, subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def network(pid: int) -> Path:
    """Which network a process is in."""
    return Path(f"/proc/{pid}/ns/net").readlink()


@pytest.fixture
def far_host(tmp_path: Path) -> Iterator[str]:
    """The pid whose network is the other host's; a link of two ends leads there."""
    link = f"svc{os.getpid()}"[:13]
    with started("unshare", "-n", "sleep", "600", log=tmp_path / "host.log") as host:
        until("a network of its own", lambda: network(host.pid) != network(os.getpid()))
        ip("link", "add", link, "type", "veth", "peer", "name", "far", "netns", str(host.pid))
        try:
            ip("addr", "add", f"{NEAR}/24", "dev", link)
            ip("link", "set", link, "up")
            inside = ("nsenter", "-t", str(host.pid), "-n", "ip")
            for words in (("addr", "add", f"{FAR}/24", "dev", "far"), ("link", "set", "far", "up")):
                subprocess.run([*inside, *words], check=True)
            yield str(host.pid)
        finally:
            ip("link", "del", link)


def test_replica_is_back_within_two_good_probes_after_a_partition_W24(tmp_path: Path, far_host: str) -> None:
    port, link = free_port(), f"svc{os.getpid()}"[:13]
    (tmp_path / "static.json").write_text(json.dumps([{"name": "far", "host": FAR, "port": 9000, "metadata": {}}]))

    def ask() -> int:
        body = json.dumps({"model": "m", "prompt": "x", "max_tokens": 1}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", data=body, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own URL
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    mock = ("-P", "-m", "babysitter.mock", "--host", FAR, "--port", "9000", "--model", "m")
    router = ("-m", "router", "--router-port", str(port), "--static-services", str(tmp_path / "static.json"))
    with ExitStack() as scope:
        enter = ("nsenter", "-t", far_host, "-n", sys.executable)
        scope.enter_context(started(*enter, *mock, log=tmp_path / "mock.log"))
        options = ("--registry-url", "", "--data-dir", str(tmp_path / "data"))
        scope.enter_context(started(sys.executable, *router, *options, log=tmp_path / "router.log"))
        until("routed", lambda: ask() == 200)
        subprocess.run(["ip", "link", "set", link, "down"], check=True)
        cut_at = time.monotonic()
        while time.monotonic() - cut_at < CUT_S:
            assert ask() != 200
        subprocess.run(["ip", "link", "set", link, "up"], check=True)
        mended_at = time.monotonic()
        until("back", lambda: ask() == 200)
        assert time.monotonic() - mended_at < BACK_S
