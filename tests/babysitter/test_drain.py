"""A stop waits for requests, and not for connections that are merely kept (W55)."""

import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from tests.babysitter.real import PROJECT, Node, running, until
from tests.ports import free_port

pytestmark = pytest.mark.e2e
IDLE = 30


class Kept:
    """A client's connection, which it keeps."""

    def __init__(self, port: int) -> None:
        self.client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, **wanted: bool) -> None:
        self.client.request("POST", "/v1/completions", json.dumps(wanted), {"content-type": "application/json"})

    def asked(self) -> bytes:
        self.ask()
        with self.client.getresponse() as answer:
            return answer.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    port = free_port()
    script = str(PROJECT / "tests" / "babysitter" / "gauge_server.py")
    backend = {"type": "command", "command": sys.executable, "args": [script, str(port)], "work_dir": str(tmp_path)}
    with running(
        tmp_path,
        port=port,
        backend=backend,
        restarts={"drain_s": 60},
        probes={"generate_path": ""},
        top={"on_exit": "stop"},
    ) as node:
        node.start()
        node.ready()
        yield node


def stop(node: Node) -> float:
    """Ask for a stop, wait for the server's end; how long that took, in seconds."""
    [server] = [node.report()["replica_pid"]]
    began = time.monotonic()
    node.babysitters[0].terminate()
    until("the server ended", lambda: not Path(f"/proc/{server}").exists() or is_zombie(server))
    return time.monotonic() - began


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_stop_does_not_wait_for_thirty_connections_that_have_just_been_used_W55(node: Node) -> None:
    with ExitStack() as stack:
        kept = [stack.enter_context(Kept(node.port)) for _ in range(IDLE)]
        assert {one.asked() for one in kept} == {b"last"}
        took_s = stop(node)
    assert "drained" in node.log()
    # Two seconds, of which one is for the routers to hear of it, on a machine with time: QUIET_S would be 5 at the least.
    assert took_s < (2.0 if os.getloadavg()[0] < (os.cpu_count() or 1) else 4.9)


@pytest.mark.parametrize("wanted", ["stream", "slow"])
def test_stop_waits_for_a_request_on_one_of_thirty_kept_connections_W55(node: Node, wanted: str) -> None:
    with ExitStack() as stack:
        kept = [stack.enter_context(Kept(node.port)) for _ in range(IDLE)]
        assert {one.asked() for one in kept} == {b"last"}
        busy = kept[7]
        busy.ask(**{wanted: True})
        if wanted == "stream":
            answer = busy.client.getresponse()
            assert answer.read(6) == b"first "
        pid = node.report()["replica_pid"]
        node.babysitters[0].terminate()
        until("it drains", lambda: node.state()["status"] == "stopping")
        time.sleep(3)  # a stop that does not wait takes less
        assert not is_zombie(pid)
        (node.directory / "go").touch()
        if wanted == "slow":
            answer = busy.client.getresponse()
        assert answer.read() == b"last"
        until("the server ended", lambda: is_zombie(pid))
