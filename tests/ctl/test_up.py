"""`up` and `down` with real processes, from the source tree and from a wheel."""

import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from ctl.api import Api, Place
from ctl.codes import Code
from ctl.launcher import plan
from ctl.launcher.launch import answers
from ctl.launcher.plan import BabysitterFile, Clash, Listener, NodePlan
from tests.ctl.conftest import Done
from tests.ctl.node import ROOT, Node
from tests.ports import free_port

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The node that the tests of this module share, in any order."""
    node = Node(tmp_path_factory.mktemp("node") / "state dir")
    yield node
    node.ctl("down", "--replicas", "--timeout", "20")
    node.sweep()


def up(node: Node, demo_port: int) -> Done:
    return node.ctl("up", "--demo", "--demo-port", str(demo_port), *node.ports, "--no-agent")


@pytest.fixture
def node(shared: Node, demo_port: int) -> Node:
    """It runs: it is launched for the first test, and after one that ended something of it."""
    if not shared.started() or shared.ctl("status").code != 0:
        done = up(shared, demo_port)
        assert done.code == 0, done.stderr
    return shared


@pytest.fixture(scope="module")
def demo_port() -> int:
    if os.environ.get("SVC_SCREENS"):
        return 8001
    return next(port for port in iter(free_port, None) if all_free(port + 10))


def all_free(port: int) -> bool:
    for wanted in (port, port + 1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                return False
    return True


@pytest.mark.parametrize("kind", [plan.REGISTRY, plan.ROUTER, plan.AGENT])
async def test_each_service_is_known_by_its_health(kind: str) -> None:
    """The registry and the agent both count replicas; neither is taken for the other, nor for a router."""
    counts = {"status": "healthy", "replicas_total": 0, "replicas_ready": 0}
    told: dict[str, dict[str, Any]] = {
        plan.REGISTRY: {**counts, "registry": "running"},
        plan.ROUTER: {"status": "running", "router": "running"},
        plan.AGENT: {**counts, "node": "n"},
    }

    class Told(Api):
        async def call(self, place: Place, *_: Any, **__: Any) -> dict[str, Any]:
            return told[place.name]

    async with aiohttp.ClientSession() as session:
        taken = [it for it in told if await answers(Told(session), plan.Part(it, kind, (), "", (1,), ""))]
    assert taken == [kind]


def test_up_starts_a_node_and_says_what_serves_where(shared: Node, demo_port: int) -> None:
    shared.ctl("down", "--timeout", "60")
    done = up(shared, demo_port)
    assert done.code == 0, done.stdout + done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()[1:]}
    assert rows["registry"][1:3] == ["ready", "now"]
    assert rows[f"babysitter_{demo_port}"][-1] == f"http://127.0.0.1:{demo_port}"
    assert f"babysitter_{demo_port + 10}: ready" in done.stderr
    assert "svcctl chat" in done.stderr


def test_the_other_commands_find_the_node_by_its_state_directory(node: Node) -> None:
    assert [model["id"] for model in node.json("models")["data"]] == ["mock-large", "mock-small"]
    assert node.json("chat", "mock-small", "Hello")["text"].startswith("This is mock-small")
    assert node.json("explain", "mock-small")["picked"] is not None
    assert node.ctl("status").code == 0
    assert node.ctl("doctor").code == 0


def test_up_again_leaves_what_runs_alone_and_says_so(node: Node, demo_port: int) -> None:
    before = node.started()
    again = node.json("up", "--demo", "--demo-port", str(demo_port), *node.ports, "--no-agent")
    assert node.started() == before
    assert {part["name"]: part["already"] for part in again["started"]} == dict.fromkeys(before, True)


def test_up_elsewhere_is_refused_while_it_runs_here(node: Node) -> None:
    done = node.ctl("up", "--registry-port", str(free_port()), "--no-router", "--no-agent")
    assert done.code == Code.FAILED
    assert "registry: already runs at" in done.stderr
    assert "stop it first: 'svcctl down'" in done.stderr


def test_up_without_ports_finds_what_runs_and_adds_to_it(node: Node, tmp_path: Path) -> None:
    """The file's own registry is another one: the node's, which is not at the usual port, wins."""
    port = free_port()
    config = tmp_path / "more.toml"
    text = f'name = "more"\nport = {port}\nregistry_url = "http://127.0.0.1:1"\n[backend]\ntype = "mock"\nmodels = ["more"]\n[babysitter]\ndrain_s = 0.5\n'
    config.write_text(text)
    done = node.ctl("up", "--no-agent", str(config))
    assert done.code == 0, done.stderr
    assert "more" in [model["id"] for model in node.json("models")["data"]]
    assert node.ctl("down", f"babysitter-{port}").code == 0


def test_a_registry_that_somebody_else_started_is_used_as_it_is(node: Node, tmp_path: Path) -> None:
    other = Node(tmp_path / "other", registry_port=node.registry_port)
    done = other.ctl("up", "--no-router", "--no-agent", "--registry-port", str(node.registry_port))
    assert done.code == 0, done.stderr
    assert "elsewhere" in done.stdout
    assert other.started() == {}


def test_a_strangers_port_is_refused_and_what_was_started_ends(tmp_path: Path) -> None:
    other = Node(tmp_path / "other")
    with socket.create_server(("127.0.0.1", other.router_port)):
        done = other.ctl("up", "--no-agent", *other.ports)
    assert done.code == Code.CONFIG
    assert f"port {other.router_port} is taken by pid {os.getpid()}" in done.stderr
    assert other.left() == []
    assert other.started() == {}


def test_a_file_that_a_babysitter_refuses_is_told_in_its_own_words(tmp_path: Path) -> None:
    other = Node(tmp_path / "other")
    config = tmp_path / "bad.toml"
    config.write_text(f'name = "bad"\nport = {free_port()}\n[backend]\ntype = "command"\ncommand = "/does/not/exist"\n')
    done = other.ctl("up", "--no-agent", "--no-router", *other.ports, str(config))
    assert done.code == Code.FAILED
    assert "ended with exit code 78" in done.stderr
    assert "/does/not/exist" in done.stderr
    assert other.left() == []


def test_a_file_without_a_port_starts_nothing(tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text('name = "bad"\n')
    done = Node(tmp_path / "other").ctl("up", str(config))
    assert done.code == Code.CONFIG
    assert f"{config}: 'port' is missing" in done.stderr


def test_a_pid_that_belongs_to_somebody_else_now_is_never_ended(node: Node) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "-m", "registry"])
    file = node.state / "logs" / "registry.pid"
    before = file.read_text()
    try:
        file.write_text(f"{stranger.pid}\n")
        done = node.ctl("down", "registry")
        assert "registry: was not running" in done.stderr
        assert stranger.poll() is None
        assert psutil.pid_exists(int(before))
    finally:
        file.write_text(before)
        stranger.kill()
        stranger.wait()


def test_status_tells_what_has_died(node: Node) -> None:
    victim = psutil.Process(node.started()["registry"])
    victim.kill()
    psutil.wait_procs([victim], timeout=10)
    done = node.ctl("status")
    assert done.code == Code.FAILED
    assert "not running" in done.stdout


def test_down_ends_all_of_it_and_nothing_is_left(node: Node) -> None:
    victim = psutil.Process(node.started()["registry"])
    victim.kill()
    psutil.wait_procs([victim], timeout=10)
    done = node.ctl("down", "--timeout", "60")
    assert done.code == 0, done.stderr
    assert "registry: was not running" in done.stderr
    assert node.left() == []
    assert node.started() == {}
    assert "nothing was started" in node.ctl("down").stderr


def test_up_works_from_a_wheel_without_the_repository(tmp_path: Path, demo_port: int) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        env={**os.environ, "SVC_COMPILE": "no"},
        timeout=60,
    )
    site = tmp_path / "site"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    empty = tmp_path / "empty"
    (empty / "registry").mkdir(parents=True)  # a folder of the user's, not ours
    node = Node(tmp_path / "state", cwd=empty, env={"PYTHONPATH": str(site / "inference_svc"), "PYTHONSAFEPATH": "1"})
    try:
        done = node.ctl("up", "--demo", "--demo-port", str(demo_port), *node.ports)
        assert done.code == 0, done.stdout + done.stderr
        assert node.json("chat", "mock-small", "Hello")["finish_reason"]
        assert node.ctl("down").code == 0
        assert node.left() == []
    finally:
        node.sweep()


NODE = NodePlan("/s", Listener(18000), Listener(8000), None, (), "http://127.0.0.1:18000", steered=False)


def test_two_parts_that_want_one_port_are_refused_before_anything_starts() -> None:
    with pytest.raises(Clash, match=r"a\.toml needs port 8000, which is for the router"):
        plan.parts(replace(NODE, babysitters=(BabysitterFile("a.toml", "a", 7999),)))


def test_a_babysitter_follows_its_file_unless_the_registry_was_chosen_here() -> None:
    own = BabysitterFile("a.toml", "a", 8100, named=frozenset({"registry_url", "log_dir"}))
    (_, _, part) = plan.parts(replace(NODE, babysitters=(own,)))
    assert part.args == ("--config-file", "a.toml", "--data-dir", "/s/data")
    (_, _, part) = plan.parts(replace(NODE, babysitters=(own,), steered=True))
    assert part.args[-2:] == ("--registry-url", "http://127.0.0.1:18000")
