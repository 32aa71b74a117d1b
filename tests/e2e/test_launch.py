"""What a launch does when something is wrong, missing or already there."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.babysitter.real import until
from tests.e2e.node import ROOT, Node, ask, copy_tree, entry_point
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


@contextmanager
def one_replica(folder: Path) -> Iterator[Node]:
    """A node with free ports and one replica in `one.toml`; what is left running at its end is a fault."""
    registry_port, router_port, port = free_ports(3)
    node = Node(folder, registry_port, router_port, GIVEN | {"SERVER_PORT": str(port)})
    configure(node, MOCK_BACKEND)
    yield node
    node.run("stop_all.sh")
    left = node.left()
    for process in left:
        process.kill()
    assert left == []


@pytest.fixture
def node(copy: Path) -> Iterator[Node]:
    with one_replica(copy) as node:
        yield node


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


def test_configurations_of_no_use_are_named_and_nothing_is_started_when_all_are(node: Node) -> None:
    done = node.run("launch_all.sh", BABYSITTER_CONFIGS="two.toml three.toml")
    refused(done, node, "there is no file 'two.toml'", "there is no file 'three.toml'")


def test_an_unknown_key_is_told_with_what_was_meant_before_anything_is_started(node: Node) -> None:
    configure(node, MOCK_BACKEND, more='rooter_url = "http://localhost:8000"')
    refused(node.run("launch_all.sh"), node, "unknown key 'rooter_url' (did you mean 'router_url'?)")


def test_bad_servers_do_not_take_the_node_down_W40(node: Node) -> None:
    """A file that is missing, one whose port another has, one whose command is not there: told, and the rest serves."""
    text = (node.folder / "config/one.toml").read_text()
    clash, bad = server_port(node) + 1, free_ports(1)[0]
    node.write_config("clash.toml", text.replace(f"port = {server_port(node)}", f"port = {clash}"))
    bad_text = text.replace(f"port = {server_port(node)}", f"port = {bad}").replace('name = "replica"', 'name = "bad"')
    node.write_config("bad.toml", bad_text.replace(MOCK_BACKEND, 'type = "command"\ncommand = "no-such-program"\n'))
    done = node.run("launch_all.sh", BABYSITTER_CONFIGS="gone.toml bad.toml one.toml clash.toml")
    assert done.returncode == 3, done.stdout + done.stderr
    assert f"clash.toml needs port {clash}, which is for {node.folder}/config/one.toml" in done.stderr
    assert "command 'no-such-program' does not exist on PATH" in done.stderr
    assert f"error: not running: gone.toml, clash.toml, bad (port {bad}). Everything else goes on" in done.stderr
    assert ask(f"{node.router}/chat/completions", {"model": "m", "messages": []})[0] == 200
    node.write_config("bad.toml", bad_text)
    again = node.run("launch_all.sh", BABYSITTER_CONFIGS="bad.toml one.toml")
    assert again.returncode == 0, again.stderr
    assert f"babysitter_{server_port(node)}: runs already" in again.stdout
    for name in ("clash.toml", "bad.toml"):
        (node.folder / "config" / name).unlink()


@pytest.mark.parametrize("named", [None, "", "  ", "()", "( )"])
def test_no_named_file_means_the_defaults_and_says_why_W39(node: Node, named: str | None) -> None:
    for number in (1, 2):  # where they would run if they were there
        (node.folder / f"config/babysitter{number}.toml").write_text("nothing = 1\n")
    del node.environment["BABYSITTER_CONFIGS"]
    done = node.run("launch_all.sh", **({} if named is None else {"BABYSITTER_CONFIGS": named}))
    assert done.returncode == 78
    assert [line for line in done.stdout.splitlines() if line.startswith("BABYSITTER_CONFIGS names no file")] != []
    assert 'BABYSITTER_CONFIGS="a.toml b.toml" ./script/launch_all.sh' in done.stdout
    assert "config/babysitter2.toml: unknown key 'nothing'" in done.stderr


def test_the_string_of_an_array_names_its_files_W39(node: Node) -> None:
    done = node.run("launch_all.sh", BABYSITTER_CONFIGS='("gone.toml" config/lost.toml)')
    refused(done, node, "there is no file 'gone.toml'", "there is no file 'config/lost.toml'")


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
        assert f"{ports[part]} is taken by pid {os.getpid()} (" in done.stderr
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


def test_the_template_and_its_copies_launch_an_infinilm_server_W34(node: Node) -> None:
    """The launch script of the test stands in for InfiniLM's: same flags, our mock behind them."""
    script = node.folder / "InfiniLM/scripts/launch_server.py"
    script.parent.mkdir(parents=True)
    script.write_text(
        "import os, sys; given = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "print(os.getcwd(), *sys.argv[1:], flush=True)\n"
        "argv = ['--port', given['--port'], '--host', given['--host'], '--model', os.path.basename(given['--model-path'])]\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'babysitter.mock', *argv])\n"
    )
    model, port = node.folder / "Qwen", server_port(node)
    model.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    given = {"PORT": str(port), "REGISTRY_URL": node.registry, "ROUTER_URL": "", "PATH": path, "PYTHONPATH": str(ROOT)}
    assert node.run("launch_registry.sh", HEALTH_INTERVAL="7").returncode == 0
    assert "--health-interval 7 --health-timeout 5" in " ".join(psutil.Process(node.pid("registry")).cmdline())
    done = node.run("launch_babysitter_qwen.sh", MODEL_PATH=str(model), **given)
    assert done.returncode == 0, done.stderr
    assert f"babysitter_{port}: ready" in done.stdout
    _, info = ask(f"http://localhost:{port + 1}/info")
    assert (info["name"], info["router_url"] or None) == (f"infinilm-infinilm-{port}", None)
    said = (node.folder / f"logs/server_infinilm-infinilm-{port}_stdout.log").read_text().splitlines()[0]
    assert said == (
        f"{node.folder}/InfiniLM --port {port} --host localhost --model-path {model} --dev metax --ndev 4 "
        "--max-batch 16 --request-timeout 30 --max-concurrency 5"
    )
    assert ask(f"{node.registry}/services/infinilm-infinilm-{port}-server")[0] == 200
    assert node.run("stop_babysitter.sh", f"infinilm-infinilm-{port}").returncode == 0
    script.unlink()
    gone = node.run("launch_babysitter.sh", MODEL_PATH=str(model), **given)
    assert gone.returncode == 78
    assert f"/workspace/InfiniLM/scripts/launch_server.py, {node.folder.parent}/InfiniLM" in gone.stderr


def test_the_templates_have_the_ancestors_whole_block_W34() -> None:
    blocks = {
        "launch_babysitter.sh": "HOST PORT SERVICE_NAME SERVICE_TYPE REGISTRY_URL ROUTER_URL MAX_RESTARTS RESTART_DELAY "
        "HEARTBEAT_INTERVAL MODEL_PATH MODEL_NAME LAUNCH_SCRIPT DEV NDEV MAX_BATCH MAX_TOKENS AWQ REQUEST_TIMEOUT "
        "MAX_CONCURRENCY CONFIG_FILE HPCC_VISIBLE_DEVICES CUDA_VISIBLE_DEVICES PYTHON_CMD",
        "launch_registry.sh": "REGISTRY_PORT HEALTH_INTERVAL HEALTH_TIMEOUT CLEANUP_INTERVAL",
        "launch_router.sh": "ROUTER_PORT REGISTRY_URL STATIC_SERVICES HEALTH_INTERVAL HEALTH_TIMEOUT MAX_ERRORS "
        "REGISTRY_SYNC_INTERVAL",
    }
    for script, names in blocks.items():
        text = (ROOT / "script" / script).read_text()
        block = text[text.index("# --- configuration") : text.index("# -----------------------")]
        assert [line.partition("=")[0] for line in block.splitlines() if "=" in line] == names.split(), script
    assert 'PORT="${PORT:-8100}"' in (ROOT / "script/launch_babysitter_9g8b.sh").read_text()
    assert 'PORT="${PORT:-8200}"' in (ROOT / "script/launch_babysitter_qwen.sh").read_text()


def test_an_announced_address_of_another_machine_is_registered_and_the_node_comes_up_W38(node: Node) -> None:
    done = node.run("launch_all.sh", BABYSITTER_HOST="10.254.253.7", LAUNCH_ROUTER="false")
    assert done.returncode == 0, done.stderr
    told = until(
        "registered", lambda: (found := ask(f"{node.registry}/services/replica-server"))[0] == 200 and found[1]
    )
    assert (told["host"], told["url"]) == ("10.254.253.7", f"http://10.254.253.7:{server_port(node)}")
    assert ask(f"http://localhost:{server_port(node) + 1}/health")[1]["status"] == "healthy"
    assert node.run("status.sh").returncode == 0


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


@pytest.fixture
def container(node: Node) -> Iterator[Node]:
    """The node as a container has it: an own `config/` with one file, and nothing that names it."""
    del node.environment["BABYSITTER_CONFIGS"], node.environment["LAUNCH_AGENT"]
    kept = [(file, file.read_text()) for file in (node.folder / "config").glob("*.toml")]
    for file, _ in kept:
        if file.name != "one.toml":
            file.unlink()
    yield node
    for file, text in kept:
        file.write_text(text)


def test_a_container_launches_its_components_and_follows_the_others_W37(container: Node) -> None:
    """A babysitter alone, of the one file in config/, which reports to a registry that another container has."""
    configure(container, MOCK_BACKEND)
    assert container.run("launch_registry.sh").returncode == 0
    registry = container.pid("registry")
    named = {"LAUNCH_COMPONENTS": "babysitter", "REGISTRY_URL": container.registry, "ROUTER_URL": "http://router:8000"}
    healthy = [sys.executable, str(container.folder / "deploy/docker/healthy.py"), "1"]
    environment = {**container.full_environment(), **named}
    with entry_point(container.folder, environment) as (entry, _told):
        assert ask(f"{container.registry}/services/replica-server")[0] == 200
        assert ask(f"http://localhost:{server_port(container) + 1}/info")[1]["router_url"] == "http://router:8000"
        assert is_free(container.router_port)
        assert is_free(container.agent_port)
        assert subprocess.run(healthy, env=environment, check=False, timeout=30).returncode == 0
        entry.send_signal(signal.SIGTERM)
        assert entry.wait(60) == 0
    psutil.Process(registry).terminate()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"LAUNCH_COMPONENTS": "registry,rooter"}, "LAUNCH_COMPONENTS: 'rooter' is none of all, none, registry"),
        ({"LAUNCH_COMPONENTS": "babysitter", "EMPTY": "1"}, "/config has none with a [backend]; in it: notes.txt"),
    ],
)
def test_a_container_says_what_it_cannot_launch_W37(container: Node, variables: dict[str, str], said: str) -> None:
    if "EMPTY" in variables:
        shutil.rmtree(container.folder / "config")
        (container.folder / "config").mkdir()
        (container.folder / "config/notes.txt").write_text("")
    old_name = shutil.copy(container.folder / "deploy/docker/docker_entrypoint.sh", container.folder)
    done = subprocess.run(
        [old_name],
        env={**container.full_environment(), **variables},
        cwd=container.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    Path(old_name).unlink()
    assert (done.returncode, said in done.stderr) == (78, True), done.stderr
