"""The main job, end to end: the real scripts, the real processes, the official client."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from bench.start import MEMORY_MB, memory_mb
from tests.e2e.node import Node, ask, copy_tree
from tests.ports import free_ports, is_free

pytestmark = pytest.mark.e2e

HELLO: Any = [{"role": "user", "content": "Hello"}]
CONFIG = """
name = "{name}"
port = {port}
registry_url = "http://localhost:1"

[babysitter]
restart_delay = 0.2
heartbeat_interval = 1

[probes]
start_interval_s = 0.2

[backend]
type = "mock"
models = ["{own}", "shared"]
args = ["--tokens", "8"]
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one-node") / "inference svc"
    copy_tree(folder)
    return folder


@pytest.fixture(scope="module")
def ports() -> list[int]:
    return free_ports(4)


@pytest.fixture(scope="module")
def node(copy: Path, ports: list[int]) -> Iterator[Node]:
    """The node that the tests of this module share, in the order they stand; it is launched by the first."""
    node = Node(copy, ports[0], ports[1], {"BABYSITTER_CONFIGS": "small.toml config/large.toml"})
    node.write_config("small.toml", CONFIG.format(name="replica-small", port=ports[2], own="mock-small"))
    node.write_config("large.toml", CONFIG.format(name="replica-large", port=ports[3], own="mock-large"))
    launched = node.run("launch_all.sh")
    assert launched.returncode == 0, launched.stdout + launched.stderr + logs(node)
    (copy / "launched.txt").write_text(launched.stdout)
    yield node
    node.run("stop_all.sh")
    for process in node.processes():
        process.kill()


def logs(node: Node) -> str:
    return "".join(f"\n== {path}\n{path.read_text()[-3000:]}" for path in sorted((node.folder / "logs").glob("*.log")))


WEIGHS_MB = {**MEMORY_MB, "babysitter": 46}
"""As docs/performance.md has it: a babysitter's bound is missed."""


def test_no_process_of_ours_weighs_more_than_its_bound(node: Node) -> None:
    ours = {one.pid: one for process in node.processes() for one in (process, *process.children(recursive=True))}
    found = memory_mb(ours.values())
    assert WEIGHS_MB.keys() <= found.keys()
    assert {kind: mb for kind, mb in found.items() if mb > WEIGHS_MB.get(kind, mb)} == {}


def names_of_services(node: Node) -> set[str]:
    """What is registered, but for the router itself, whose record is made a moment after its start."""
    listed = ask(f"{node.registry}/services")[1]["services"]
    return {it["name"] for it in listed if it["metadata"].get("type") != "router"}


@pytest.fixture
def client(node: Node) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{node.router}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


# --- launched


def test_launch_tells_what_it_did_and_what_to_try(node: Node, ports: list[int]) -> None:
    told = (node.folder / "launched.txt").read_text()
    for name in ("registry", "router", f"babysitter_{ports[2]}", f"babysitter_{ports[3]}"):
        assert f"{name}: ready" in told
    assert f"curl http://localhost:{node.registry_port}/health" in told
    assert f"curl -N http://localhost:{node.router_port}/chat/completions" in told
    assert '"model": "mock-small"' in told


def test_pid_files_and_logs_have_the_names_that_scripts_expect(node: Node, ports: list[int]) -> None:
    for name in ("registry", "router", f"babysitter_{ports[2]}", f"babysitter_{ports[3]}"):
        assert psutil.pid_exists(node.pid(name))
    for pattern in ("registry_*.log", "router_*.log", "babysitter_*.log"):
        assert list((node.folder / "logs").glob(pattern))


def test_processes_survive_the_terminal(node: Node) -> None:
    for name in ("registry", "router"):
        pid = node.pid(name)
        assert os.getsid(pid) == pid
        assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")


def test_every_call_of_the_guides_health_checks_and_monitoring_answers(node: Node, ports: list[int]) -> None:
    for path in ("/health", "/services"):
        assert ask(node.registry + path)[0] == 200
    for path in ("/health", "/models", "/services", "/stats"):
        assert ask(node.router + path)[0] == 200
    for port in (ports[2], ports[3]):
        status, health = ask(f"http://localhost:{port + 1}/health")
        assert (status, health["infinilm_server_running"], health["infinilm_server_port"]) == (200, True, port)
    names = names_of_services(node)
    assert names == {"agent-n1", "replica-small", "replica-small-server", "replica-large", "replica-large-server"}
    assert ask(f"{node.router}/health")[1]["healthy_services"] == "2/2"


def test_the_guides_log_lines_can_be_followed(node: Node) -> None:
    for pattern in ("registry_*.log", "router_*.log", "babysitter_*.log"):
        shown = subprocess.run(
            ["bash", "-c", f"tail -n 1 logs/{pattern}"], cwd=node.folder, capture_output=True, check=True
        )
        assert shown.stdout


# --- the official client


@pytest.mark.parametrize("model", ["mock-small", "mock-large"])
def test_a_chat_is_answered_by_the_replica_with_the_model(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=HELLO)
    assert answer.model == model
    assert answer.choices[0].message.content


@pytest.mark.parametrize("model", ["mock-small", "mock-large"])
def test_a_chat_streams_to_its_end(client: openai.OpenAI, model: str) -> None:
    chunks = list(client.chat.completions.create(model=model, messages=HELLO, stream=True))
    assert len(chunks) > 2
    assert {chunk.model for chunk in chunks} == {model}
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] is not None


def test_a_stream_arrives_as_it_is_made(client: openai.OpenAI, ports: list[int]) -> None:
    ask(f"http://localhost:{ports[2]}/mock/knobs", {"hang_after_chunks": 2})
    stream = client.chat.completions.create(model="mock-small", messages=HELLO, stream=True)
    assert next(iter(stream))
    stream.close()
    ask(f"http://localhost:{ports[2]}/mock/knobs", {"hang_after_chunks": None})


def test_paths_without_v1_are_the_same(node: Node) -> None:
    with openai.OpenAI(base_url=node.router, api_key="none", max_retries=0) as client:
        assert client.chat.completions.create(model="mock-small", messages=HELLO).choices


def test_completions_and_embeddings(client: openai.OpenAI) -> None:
    assert client.completions.create(model="mock-small", prompt="Hello").choices[0].text
    made = client.embeddings.create(model="mock-large", input=["a", "b"])
    assert len(made.data) == 2
    assert made.data[0].embedding


def test_models_are_the_union_of_the_replicas(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["mock-large", "mock-small", "shared"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_503(client: openai.OpenAI, stream: bool) -> None:  # noqa: FBT001 - a parameter of the test
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="nobody", messages=HELLO, stream=stream)
    assert caught.value.status_code == 503


def test_requests_for_a_shared_model_reach_both_replicas(client: openai.OpenAI) -> None:
    seen = {client.chat.completions.create(model="shared", messages=HELLO).system_fingerprint for _ in range(8)}
    assert len(seen) == 2


# --- faults


def eventually(holds: Callable[[], bool], within_s: float = 60.0) -> None:
    """Wait until `holds`; other processes can only be asked again."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def server_pid(port: int) -> int:
    return int(ask(f"http://localhost:{port + 1}/info")[1]["replica"]["replica_pid"])


async def test_killing_a_server_loses_no_request_that_had_not_begun_A2(node: Node, ports: list[int]) -> None:
    victim = ports[2]
    ask(f"http://localhost:{victim}/mock/knobs", {"hold": True})
    before = server_pid(victim)
    async with openai.AsyncOpenAI(base_url=f"{node.router}/v1", api_key="none", max_retries=0, timeout=30) as client:

        async def whole() -> str:
            answer = await client.chat.completions.create(model="shared", messages=HELLO)
            return answer.choices[0].message.content or ""

        async def streamed() -> str:
            stream = await client.chat.completions.create(model="shared", messages=HELLO, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

        requests = [asyncio.create_task(whole() if number % 2 else streamed()) for number in range(20)]
        await asyncio.to_thread(ask, f"http://localhost:{victim}/mock/state?wait_s=10&held=5")
        os.kill(before, signal.SIGKILL)
        texts = await asyncio.gather(*requests)
    assert all(texts)
    # The babysitter starts it again (what it says in the first milliseconds is of the one before), the router takes it
    # back, and it serves.
    await asyncio.to_thread(eventually, lambda: ask(f"http://localhost:{victim + 1}/health")[1]["restart_count"] == 1)
    await asyncio.to_thread(eventually, lambda: ask(f"http://localhost:{victim + 1}/health")[1]["status"] == "healthy")
    await asyncio.to_thread(eventually, lambda: ask(f"{node.router}/health")[1]["healthy_services"] == "2/2")
    assert server_pid(victim) != before


def test_the_model_of_the_killed_server_is_served_again(client: openai.OpenAI) -> None:
    assert client.chat.completions.create(model="mock-small", messages=HELLO).choices


def test_the_router_serves_on_while_the_registry_is_away(node: Node, client: openai.OpenAI) -> None:
    assert node.run("stop_registry.sh").returncode == 0
    assert client.chat.completions.create(model="mock-large", messages=HELLO).choices
    assert node.run("launch_registry.sh").returncode == 0
    names = names_of_services(node)
    assert {"replica-small-server", "replica-large-server"} <= names
    assert client.chat.completions.create(model="mock-small", messages=HELLO).choices


# --- the other scripts


def test_launching_again_leaves_everything_as_it_is(node: Node, ports: list[int]) -> None:
    names = ("registry", "router", f"babysitter_{ports[2]}", f"babysitter_{ports[3]}")
    before = [node.pid(name) for name in names]
    again = node.run("launch_all.sh")
    assert again.returncode == 0, again.stderr
    for name in names:
        assert f"{name}: runs already" in again.stdout
    assert [node.pid(name) for name in names] == before


def test_the_alias_of_deployed_scripts_is_the_same_launch(node: Node) -> None:
    assert "router: runs already" in node.run("launch_all_rust.sh").stdout


def test_status_is_a_table(node: Node, ports: list[int]) -> None:
    shown = node.run("status.sh")
    assert shown.returncode == 0, shown.stdout
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert rows[0] == ["PROCESS", "PID", "PORT", "HEALTH", "MODELS"]
    assert rows[1] == ["registry", str(node.pid("registry")), str(node.registry_port), "healthy"]
    assert [f"babysitter_{ports[2]}", "healthy", "mock-small,", "shared"] in [[row[0], *row[3:6]] for row in rows]


def test_an_array_of_configurations_works_where_the_script_is_sourced(node: Node) -> None:
    sourced = subprocess.run(
        [
            "bash",
            "-c",
            f'BABYSITTER_CONFIGS=(large.toml); . "{node.folder}/script/launch_all.sh"; echo "still here: $?"',
        ],
        env={name: value for name, value in node.full_environment().items() if name != "BABYSITTER_CONFIGS"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "still here: 0" in sourced.stdout, sourced.stderr
    assert sourced.stdout.count("babysitter_") == 2


def test_one_babysitter_is_stopped_by_name_with_its_server(node: Node, ports: list[int]) -> None:
    pid = server_pid(ports[3])
    stopped = node.run("stop_babysitter.sh", "replica-large")
    assert stopped.returncode == 0, stopped.stderr
    assert not psutil.pid_exists(pid)
    names = names_of_services(node)
    assert names == {"agent-n1", "replica-small", "replica-small-server"}
    assert node.run("status.sh").returncode == 0


def test_stop_all_leaves_nothing(node: Node, ports: list[int]) -> None:
    stopped = node.run("stop_all.sh")
    assert stopped.returncode == 0, stopped.stderr
    assert node.left() == []
    assert [port for port in (*ports[:2], ports[2], ports[2] + 1, ports[3], ports[3] + 1) if not is_free(port)] == []
    assert list((node.folder / "logs").glob("*.pid")) == []
    again = node.run("stop_all.sh")
    assert (again.returncode, again.stderr) == (0, "")
