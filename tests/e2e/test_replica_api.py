"""The release server's guide, section by section, against real processes: launch script, agent, index, stand-in server."""

import json
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.babysitter.stand_in.index import Index
from tests.babysitter.stand_in.wheels import make_wheel, suite
from tests.e2e.node import Node, ask, copy_tree
from tests.ports import free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
EXAMPLE = Path(__file__).with_name("llama3.1-8b.json").read_text()
"""The guide's long example, as it stands there."""
VERSION = "0.0.0+build.1b9c30c813"
SETTINGS = """
[babysitter]
restart_delay = 0.2
heartbeat_interval = 1
drain_s = 1
stop_grace_s = 3
[probes]
start_interval_s = 0.1
interval_s = 0.5
[cbclient]
index_url = "{index}"
image_registry = "registry.example"
"""
WAIT_S = 100
HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """A private index with one build."""
    directory = tmp_path_factory.mktemp("devpi")
    made = Index(directory)
    try:
        made.start()
        made.upload(make_wheel(directory / "wheels", "stand-in-dep", "1.0"), *suite(directory / "wheels", VERSION))
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def node(index: Index, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A launched node whose router serves the replica API as well; the tests of this module share it, in their order."""
    folder = tmp_path_factory.mktemp("replicas") / "project"
    copy_tree(folder)
    registry_port, router_port = free_ports(2)
    given = {
        "LAUNCH_BABYSITTER": "false",
        "ROUTER_EXPOSE_REPLICA_API": "true",
        "AGENT_BABYSITTER_CONFIG": str(folder / "config" / "client.toml"),
    }
    node = Node(folder, registry_port, router_port, given)
    node.write_config("client.toml", SETTINGS.format(index=index.url))
    launched = node.run("launch_all.sh")
    try:
        assert launched.returncode == 0, launched.stdout + launched.stderr
        yield node
    finally:
        node.run("stop_all.sh", STOP_REPLICAS="true")
        for process in node.processes():
            process.kill()


def root(node: Node) -> Path:
    return node.folder / "data" / "replicas"


def told(node: Node) -> str:
    paths = sorted([*node.folder.glob("logs/*.log"), *root(node).glob("*/*.log")])
    return "".join(f"\n== {path}\n{path.read_text(errors='replace')[-2000:]}" for path in paths)


def until(node: Node, what: str, check: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {WAIT_S} s\n{told(node)}")


def info(base: str, replica_id: str) -> dict[str, Any]:
    status, content = ask(f"{base}/api/v1/replicas/{replica_id}")
    return dict(content["info"]) if status == 200 else {}


def reached(node: Node, replica_id: str, status: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = info(node.agent, replica_id)
        assert found.get("status") != "failed" or status == "failed", f"{found}\n{told(node)}"
        return found if found.get("status") == status else None

    return dict(until(node, f"{replica_id} is {status}", look))


def create(node: Node, **stand_in: Any) -> str:
    """The guide's example, with what the stand-in is told."""
    body = json.loads(EXAMPLE)
    body["full_config"]["stand_in"] = stand_in
    status, content = ask(f"{node.router}/api/v1/replicas", body)
    assert status == 201, content
    return str(content["replica_id"])


def records(node: Node) -> set[str]:
    return {it["name"] for it in ask(f"{node.registry}/services")[1]["services"]}


def call(method: str, url: str) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=20) as answer:  # noqa: S310 - our own
        return json.load(answer)


def test_quick_start(node: Node) -> None:
    """The long example as it stands, through the router's port, to a chat completion through the same port."""
    status, content = ask(f"{node.router}/api/v1/replicas", json.loads(EXAMPLE))
    assert status == 201
    replica_id = content["replica_id"]
    assert content == {
        "replica_id": replica_id,
        "status": "pending",
        "message": f"Replica {replica_id} created successfully",
        "base_url": None,
        "request_id": content["request_id"],
    }
    found = reached(node, replica_id, "ready")
    assert found["compile_wsjob"][0].startswith("wsjob-compile-")
    assert found["execute_wsjob"][0].startswith("wsjob-execute-")
    assert found["display_status"] == "Active"
    assert found["base_url"] == f"http://127.0.0.1:{found['port']}"
    assert found["endpoint"] == f"http://{socket.getfqdn()}:{found['port']}"
    assert (found["multibox"], found["namespace"], found["server_mode"]) == ("dh1", "inf-integ", "replica")
    until(node, "the fleet shows it", lambda: info(node.router, replica_id).get("status") == "ready")
    until(
        node, "it is routed", lambda: "llama3.1-8b" in [it["id"] for it in ask(f"{node.router}/v1/models")[1]["data"]]
    )
    with openai.OpenAI(base_url=f"{node.router}/v1", api_key="none", max_retries=0, timeout=30) as client:
        answer = client.chat.completions.create(model="llama3.1-8b", messages=HELLO)
    assert answer.choices[0].message.content == "llama3.1-8b says hello"


def test_state_storage(node: Node) -> None:
    """Every file of the guide is where it says, and the effective configuration is the example's and more."""
    (replica_id,) = [it["replica_id"] for it in ask(f"{node.agent}/api/v1/replicas?status=ready")[1]["replicas"]]
    home, state = root(node) / replica_id, root(node) / "state"
    for path in (
        state / f"{replica_id}.json",
        state / f"{replica_id}.pid",
        home / "request.json",
        home / "cbclient" / "bin" / "python",
        home / "params.yaml",
        home / "full_config.json",
        home / "model_dir" / "cerebras_logs" / "run_meta.json",
        home / "worker_stdout.log",
        home / "worker_stderr.log",
        home / "replica_stdout.log",
        home / "replica_stderr.log",
    ):
        assert path.exists(), path
    kept = json.loads((state / f"{replica_id}.json").read_text())
    assert {"server_mode", "model_name", "status", "display_status", "endpoint", "base_url", "port", "workdir", "venv_path",
            "replica_pid", "compile_wsjob", "execute_wsjob", "created_at", "updated_at", "ready_at"} <= kept.keys()  # fmt: skip
    effective = json.loads((home / "full_config.json").read_text())
    asked = json.loads(EXAMPLE)["full_config"]
    assert {name: effective[name] for name in asked if name != "runconfig"} == {
        name: asked[name] for name in asked if name != "runconfig"
    }
    assert effective["runconfig"]["cbcore_image"] == "registry.example/cbcore:build-1b9c30c813"
    assert effective["runconfig"]["job_priority"] == "p1"


def test_api_reference(node: Node) -> None:
    """Each call of the guide, at the agent, the registry and the router alike."""
    for base in (node.agent, node.registry, node.router):
        status, listed = ask(f"{base}/api/v1/replicas?server_mode=replica&status=ready&model_name=llama3.1-8b")
        assert (status, listed["total"]) == (200, 1), base
        replica_id = listed["replicas"][0]["replica_id"]
        status, content = ask(f"{base}/api/v1/replicas/{replica_id}")
        assert (status, content["replica_id"], content["status"]) == (200, replica_id, "ready")
        status, content = ask(f"{base}/api/v1/replicas/{replica_id}/health", {})
        assert (status, content["healthy"]) == (200, True), content
        assert ask(f"{base}/api/v1/replicas/zzzzzzzzzzzz")[0] == 404
        status, content = ask(f"{base}/api/v1/replicas", {"server_mode": "train", "model_name": "m"})
        assert (status, content["field"]) == (422, "server_mode")
        status, content = ask(f"{base}/api/v1/health")
        assert (status, content["status"], content["replicas_ready"]) == (200, "healthy", 1)
    assert ask(f"{node.agent}/health")[1]["status"] == "healthy"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["upgraded", "killed"])
def test_restart_scenario(node: Node, number: signal.Signals) -> None:
    """The agent ends in the middle of a compile of many jobs; the compile goes on, the ids appear, the replica is ready."""
    replica_id = create(node, compile_jobs=4, compile_s=1.5, execute_jobs=2)
    until(node, "a compile job", lambda: info(node.agent, replica_id).get("compile_wsjob"))
    before = info(node.agent, replica_id)
    os.kill(node.pid("agent"), number)
    until(node, "the agent is gone", lambda: not psutil.pid_exists(node.pid("agent")))
    server = psutil.Process(before["replica_pid"])
    state = root(node) / "state" / f"{replica_id}.json"
    count = len(before["compile_wsjob"])
    until(node, "the compile goes on", lambda: len(json.loads(state.read_text())["compile_wsjob"]) > count)
    until(node, "the fleet is told, too", lambda: len(info(node.registry, replica_id)["compile_wsjob"]) > count)
    again = node.run("launch_agent.sh")
    assert again.returncode == 0, again.stdout + again.stderr
    assert info(node.agent, replica_id)["compile_wsjob"][:count] == before["compile_wsjob"]
    found = reached(node, replica_id, "ready")
    assert (len(found["compile_wsjob"]), len(found["execute_wsjob"])) == (4, 2)
    assert (found["replica_pid"], found["restart_count"]) == (before["replica_pid"], 0)
    assert server.is_running()


def test_events_are_followed_through_the_router_to_ready(node: Node) -> None:
    replica_id = create(node, compile_jobs=2, compile_s=0.5)
    url = f"{node.router}/api/v1/replicas/{replica_id}/events?until=ready&logs=stdout"
    with urllib.request.urlopen(url, timeout=WAIT_S) as answer:  # noqa: S310 - our own
        lines = [line.decode().rstrip("\n") for line in answer]
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert (names[0], names[-1], data[-1]["status"]) == ("snapshot", "end", "ready")
    assert {"status", "transition", "stage", "jobs", "log"} <= set(names)
    assert {"stream": "stdout", "line": "compiling"} in data
    last_jobs = [it for name, it in zip(names, data, strict=True) if name == "jobs"][-1]
    assert (len(last_jobs["compile_wsjob"]), len(last_jobs["execute_wsjob"])) == (2, 1)


def test_a_delete_in_the_middle_of_a_deployment_ends_it_E2(node: Node) -> None:
    """A build that is not there: pip is at work when the delete comes."""
    body = {**json.loads(EXAMPLE), "placement": {"app_tag": "build-nowhere1"}}
    replica_id = ask(f"{node.registry}/api/v1/replicas", body)[1]["replica_id"]
    until(node, "it is deploying", lambda: info(node.agent, replica_id).get("status") == "creating")
    assert call("DELETE", f"{node.registry}/api/v1/replicas/{replica_id}")["status"] == "stopped"
    reached(node, replica_id, "stopped")
    until(node, "its directory is gone", lambda: not (root(node) / replica_id).exists())
    words = [" ".join(process.cmdline()) for process in node.processes() if process.is_running()]
    assert [line for line in words if replica_id in line] == []


def test_manual_cleanup(node: Node) -> None:
    """The guide's two lines: list all ids, delete each."""
    listed = ask(f"{node.router}/api/v1/replicas")[1]["replicas"]
    replica_ids = [it["replica_id"] for it in listed if it["status"] != "stopped"]
    assert len(replica_ids) >= 4
    pids = [info(node.agent, replica_id)["replica_pid"] for replica_id in replica_ids]
    for replica_id in replica_ids:
        assert call("DELETE", f"{node.router}/api/v1/replicas/{replica_id}")["status"] == "stopped"
    for replica_id in replica_ids:
        reached(node, replica_id, "stopped")
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
    until(node, "no directory is left", lambda: not any((root(node) / it).exists() for it in replica_ids))
    until(
        node, "no record is left", lambda: not records(node) & {*replica_ids, *(f"{it}-server" for it in replica_ids)}
    )


def test_cleanup_mode(node: Node) -> None:
    """CLEANUP_ON_SHUTDOWN: the agent's end is the replicas' end; without it, it is not."""
    assert node.run("stop_agent.sh").returncode == 0
    assert node.run("launch_agent.sh", CLEANUP_ON_SHUTDOWN="true").returncode == 0
    replica_id = create(node)
    pid = reached(node, replica_id, "ready")["replica_pid"]
    assert node.run("stop_agent.sh").returncode == 0
    assert not psutil.pid_exists(pid)
    assert node.run("launch_agent.sh").returncode == 0
    assert info(node.agent, replica_id)["status"] == "stopped"


def test_stop_all_leaves_replicas_unless_told_otherwise(node: Node) -> None:
    replica_id = create(node)
    pid = reached(node, replica_id, "ready")["replica_pid"]
    stopped = node.run("stop_all.sh")
    assert stopped.returncode == 0, stopped.stderr
    assert "1 replicas go on without it" in stopped.stdout
    assert psutil.pid_exists(pid)
    assert node.run("launch_agent.sh").returncode == 0
    assert node.run("stop_all.sh", STOP_REPLICAS="true").returncode == 0
    assert not psutil.pid_exists(pid)
    assert node.left() == []


def test_the_example_is_the_guides() -> None:
    """Its outline, so that nobody shortens it unseen."""
    example = json.loads(EXAMPLE)
    assert example["full_config"]["model"]["structured_output"]["constrained_decoding_library"] == "llguidance"
    assert example["full_config"]["replica"]["tbm_timeout_cumulative_ns"] == 10_000_000_000
    assert len(EXAMPLE) > 1500
