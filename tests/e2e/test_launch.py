"""What a launch does when something is wrong, missing or already there."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.node import Node, ask, copy_tree, entry_point
from tests.ports import free_ports, is_free

pytestmark = pytest.mark.e2e

MOCK = """
name = "replica"
port = {port}
registry_url = "http://localhost:1"
{more}
[babysitter]
restart_delay = 0.05
[probes]
start_interval_s = 0.2
[backend]
"""
MOCK_BACKEND = 'type = "mock"\nmodels = ["m"]\n'
GIVEN = {"BABYSITTER_CONFIGS": "one.toml", "LAUNCH_AGENT": "false"}
"""The agent has its own tests, and is one process more to wait for."""
ALONE = {"LAUNCH_REGISTRY": "false", "LAUNCH_ROUTER": "false"}
"""A babysitter alone shows its own faults, and is up sooner."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch") / "project"
    copy_tree(folder)
    return folder


@pytest.fixture
def node(copy: Path) -> Iterator[Node]:
    """A node with free ports and one replica in `one.toml`; what a test leaves running fails it."""
    registry_port, router_port, port = free_ports(3)
    node = Node(copy, registry_port, router_port, GIVEN | {"SERVER_PORT": str(port)})
    configure(node, MOCK_BACKEND)
    yield node
    node.run("stop_all.sh")
    left = node.left()
    for process in left:
        process.kill()
    assert left == []


def server_port(node: Node) -> int:
    return int(node.environment["SERVER_PORT"])


def configure(node: Node, backend: str, more: str = "") -> None:
    node.write_config("one.toml", MOCK.format(port=server_port(node), more=more) + backend)


def refused(done: subprocess.CompletedProcess[str], node: Node, *words: str, code: int = 78) -> None:
    """The launch ended with `code` and said `words`, and nothing of it runs."""
    assert done.returncode == code, done.stdout + done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert node.left() == []
    assert is_free(node.registry_port)
    assert is_free(node.router_port)


def test_a_toml_typo_is_told_before_anything_is_started(node: Node) -> None:
    (node.folder / "config/one.toml").write_text('name = "x"\nport = \n')
    done = node.run("launch_all.sh")
    refused(done, node, f"error: {node.folder}/config/one.toml: not valid TOML: ", "line 2")
    assert "starting" not in done.stdout


def test_a_configuration_that_does_not_exist_is_named(node: Node) -> None:
    refused(node.run("launch_all.sh", BABYSITTER_CONFIGS="one.toml two.toml"), node, "there is no file 'two.toml'")


def test_two_configurations_may_not_share_a_port(node: Node) -> None:
    text = (node.folder / "config/one.toml").read_text()
    node.write_config("neighbour.toml", text.replace(f"port = {server_port(node)}", f"port = {server_port(node) + 1}"))
    done = node.run("launch_all.sh", BABYSITTER_CONFIGS="one.toml neighbour.toml")
    refused(done, node, f"neighbour.toml needs port {server_port(node) + 1}, which is for", "one.toml")


def test_an_unknown_key_is_told_with_what_was_meant_and_all_is_stopped_again(node: Node) -> None:
    configure(node, MOCK_BACKEND, more='rooter_url = "http://localhost:8000"')
    done = node.run("launch_all.sh")
    refused(done, node, "unknown key 'rooter_url' (did you mean 'router_url'?)", "stopping what this run started")


def test_a_command_that_does_not_exist_is_named(node: Node) -> None:
    configure(node, 'type = "command"\ncommand = "no-such-program --port 1"\n')
    refused(node.run("launch_all.sh", **ALONE), node, "command 'no-such-program' does not exist on PATH")


@pytest.mark.parametrize("part", ["registry", "router", "agent", "server", "babysitter"])
def test_a_taken_port_names_its_holder(node: Node, part: str) -> None:
    ports = {
        "registry": node.registry_port,
        "router": node.router_port,
        "agent": node.agent_port,
        "server": server_port(node),
        "babysitter": server_port(node) + 1,
    }
    with socket.create_server(("127.0.0.1", ports[part])):
        alone = ALONE | {"LAUNCH_AGENT": str(part == "agent").lower()}
        done = node.run("launch_all.sh", **({} if part in {"registry", "router"} else alone))
        assert done.returncode == 78, done.stdout + done.stderr
        assert f":{ports[part]} is taken by pid {os.getpid()} (" in done.stderr
        assert node.left() == []


def test_a_server_that_cannot_start_is_told_with_the_end_of_its_log(node: Node) -> None:
    configure(node, 'type = "command"\ncommand = "bash -c \'echo no model here >&2; exit 3\'"\n')
    refused(node.run("launch_all.sh", **ALONE), node, "its server has failed", "no model here", code=1)


def test_a_wrong_variable_is_named(node: Node) -> None:
    refused(node.run("launch_all.sh", ROUTER_PORT="many"), node, "ROUTER_PORT must be a port")
    refused(node.run("launch_all.sh", LAUNCH_ROUTER="perhaps"), node, "LAUNCH_ROUTER must be true or false")
    refused(node.run("launch_all.sh", REGISTRY_HEALTH_INTERVAL="0"), node, "--health-interval: 'health_interval'")


def test_a_server_that_loads_for_long_is_left_to_load(node: Node) -> None:
    configure(node, MOCK_BACKEND + 'args = ["--slow-start-s", "3600"]\n')
    done = node.run("launch_all.sh", BABYSITTER_WAIT_TIMEOUT="1", **ALONE)
    assert done.returncode == 0, done.stderr
    assert "its server is still starting" in done.stderr
    assert node.run("status.sh").returncode == 1
    assert node.run("stop_all.sh").returncode == 0


def test_parts_can_be_left_out(node: Node) -> None:
    done = node.run("launch_all.sh", LAUNCH_ROUTER="false", LAUNCH_BABYSITTER="false")
    assert done.returncode == 0, done.stderr
    assert is_free(node.router_port)
    assert is_free(server_port(node))
    # A second launch adds what is missing.
    assert node.run("launch_all.sh", LAUNCH_REGISTRY="false").returncode == 0
    assert ask(f"{node.router}/models")[1]["data"][0]["id"] == "m"


def test_status_misses_a_part_that_died_and_none_that_was_left_out(node: Node) -> None:
    def shown() -> tuple[int, list[str]]:
        done = node.run("status.sh")
        return done.returncode, [" ".join(line.split()[::3]) for line in done.stdout.splitlines()[1:]]

    assert shown() == (1, ["registry not", "router not"])
    assert node.run("launch_registry.sh").returncode == 0
    assert shown() == (0, ["registry healthy"])
    registry = psutil.Process(node.pid("registry"))
    registry.kill()
    registry.wait(10)
    assert shown() == (1, ["registry not"])
    (node.folder / "logs" / "registry.pid").unlink()


def test_a_server_on_another_address_is_awaited_and_shown_there(node: Node) -> None:
    configure(node, MOCK_BACKEND, more='host = "127.0.0.2"')
    done = node.run("launch_all.sh")
    assert done.returncode == 0, done.stderr
    assert ask(f"{node.router}/chat/completions", {"model": "m", "messages": []})[0] == 200
    assert node.run("status.sh").returncode == 0


def test_variables_reach_the_babysitter_and_its_server(node: Node) -> None:
    done = node.run(
        "launch_all.sh",
        BABYSITTER_HOST="127.0.0.3",
        BABYSITTER_ROUTER_URL="http://router.example:8000",
        CUDA_VISIBLE_DEVICES="2,3",
        HPCC_VISIBLE_DEVICES="1",
        **ALONE,
    )
    assert done.returncode == 0, done.stderr
    _, info = ask(f"http://127.0.0.3:{server_port(node) + 1}/info")
    assert info["router_url"] == "http://router.example:8000"
    environment = psutil.Process(info["replica"]["replica_pid"]).environ()
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["HPCC_VISIBLE_DEVICES"]) == ("2,3", "1")
    assert [name for name in environment if name.startswith("SVC_")] == []


def test_a_babysitter_that_was_killed_finds_its_server_again_B1(node: Node) -> None:
    assert node.run("launch_all.sh").returncode == 0
    info = f"http://localhost:{server_port(node) + 1}/info"
    before = ask(info)[1]["replica"]["replica_pid"]
    os.kill(node.pid(f"babysitter_{server_port(node)}"), signal.SIGKILL)
    assert ask(f"{node.router}/chat/completions", {"model": "m", "messages": []})[0] == 200
    again = node.run("launch_all.sh")
    assert again.returncode == 0, again.stderr
    assert f"babysitter_{server_port(node)}: starting" in again.stdout
    assert ask(info)[1]["replica"]["replica_pid"] == before


def test_the_template_and_its_copies_launch_an_infinilm_server(node: Node) -> None:
    """The launch script of the test stands in for InfiniLM's: same flags, our mock behind them."""
    (node.folder / "launch_server.py").write_text(
        "import os, sys; given = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "argv = ['--port', given['--port'], '--host', given['--host'], '--model', os.path.basename(given['--model-path'])]\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'babysitter.mock', *argv])\n"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    assert node.run("launch_registry.sh").returncode == 0
    done = node.run(
        "launch_babysitter_qwen.sh",
        PORT=str(server_port(node)),
        MODEL_PATH="/models/Qwen",
        REGISTRY_URL=node.registry,
        PATH=path,
    )
    assert done.returncode == 0, done.stderr
    assert f"babysitter_{server_port(node)}: ready" in done.stdout
    assert ask(f"http://localhost:{server_port(node) + 1}/models")[1]["data"][0]["id"] == "Qwen"
    assert ask(f"{node.registry}/services/qwen-service-server")[0] == 200
    assert node.run("stop_babysitter.sh", "qwen-service").returncode == 0
    (node.folder / "launch_server.py").unlink()


def test_the_containers_entry_point_ends_the_node_with_itself(node: Node) -> None:
    with entry_point(node.folder, node.full_environment()) as (entry, told):
        assert ask(f"{node.router}/health")[0] == 200
        entry.send_signal(signal.SIGTERM)
        said = told.read()
        assert "registry: stopped" in said, f"ended with {entry.wait(30)}: {said!r}"
        assert entry.wait(30) == 0
    assert node.left() == []


def test_the_containers_entry_point_ends_when_a_part_ends(node: Node) -> None:
    with entry_point(node.folder, node.full_environment()) as (entry, told):
        psutil.Process(node.pid("registry")).kill()
        assert "registry has ended" in told.read()
        assert entry.wait(30) == 1
    assert node.left() == []
