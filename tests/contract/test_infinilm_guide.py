"""InfiniLM-SVC's maintenance guide, walked with the real scripts: every command, call, variable and file it names.

The steps stand in the guide's order. They share one node, which the first launches and the last stops.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.babysitter.real import until
from tests.contract.walk import Step, Verdict
from tests.e2e.node import ROOT, Node, ask, copy_tree
from tests.ports import free_ports, is_free

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
SAME, RENAMED, NOT_NEEDED, THEIRS = Verdict.SAME, Verdict.RENAMED, Verdict.NOT_NEEDED, Verdict.THEIRS
FILE = """
name = "babysitter-service-{number}"
port = {port}
registry_url = "http://localhost:{registry}"

[babysitter]
max_restarts = 10
restart_delay = 2
heartbeat_interval = 10

[backend]
type = "command"
command = "{python}"
args = ["-m", "babysitter.mock", "--port", "{port}", "--host", "127.0.0.1", "--model", "model-{number}"]
work_dir = "{work_dir}"
env = {{ "CUDA_VISIBLE_DEVICES" = "0" }}
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("guide") / "svc"
    copy_tree(folder)
    registry, router, *ports = free_ports(5)
    node = Node(folder, registry, router, {"LAUNCH_AGENT": "false", "PORTS": " ".join(map(str, ports))})
    for number, port in enumerate(ports[:2], 1):
        words = {"registry": registry, "python": sys.executable, "work_dir": ROOT}
        node.write_config(f"babysitter{number}.toml", FILE.format(number=number, port=port, **words))
    yield node
    node.run("stop_all.sh")
    for process in node.left():
        process.kill()


def port(node: Node, number: int) -> int:
    return int(node.environment["PORTS"].split()[number])


def launched(node: Node) -> None:
    """With the guide's variables, the files as one string."""
    given = {"REGISTRY_PORT": str(node.registry_port), "ROUTER_PORT": str(node.router_port)}
    done = node.run(
        "launch_all_rust.sh",
        BABYSITTER_CONFIGS="config/babysitter1.toml config/babysitter2.toml",
        ROUTER_REGISTRY_URL=node.registry,
        REGISTRY_HEALTH_INTERVAL="11",
        REGISTRY_HEALTH_TIMEOUT="4",
        REGISTRY_CLEANUP_INTERVAL="12",
        ROUTER_HEALTH_INTERVAL="13",
        ROUTER_HEALTH_TIMEOUT="6",
        ROUTER_REGISTRY_SYNC_INTERVAL="14",
        **given,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    until("both models", lambda: len(ask(f"{node.router}/models")[1]["data"]) == 2)


def runs_with(name: str, *flags: str) -> Callable[[Node], None]:
    def check(node: Node) -> None:
        line = " ".join(psutil.Process(node.pid(name)).cmdline())
        for flag in flags:
            assert flag.replace("{registry}", node.registry) in line

    return check


def answers(base: str, path: str, *members: str) -> Callable[[Node], None]:
    def check(node: Node) -> None:
        url = {"registry": node.registry, "router": node.router}.get(base) or f"http://localhost:{port(node, 0) + 1}"
        status, body = ask(url + path)
        assert status == 200
        assert set(members) <= body.keys()

    return check


def exported_array(node: Node) -> None:
    """`export BABYSITTER_CONFIGS=(…)` reaches no script: said, not silent (the two files are those it names anyway)."""
    line = (
        'export BABYSITTER_CONFIGS=("config/babysitter1.toml" "config/babysitter2.toml"); ./script/launch_all_rust.sh'
    )
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=node.folder,
        env=node.full_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert "BABYSITTER_CONFIGS names no file" in done.stdout
    assert done.stdout.count("runs already") == 4


def sourced_array(node: Node) -> None:
    line = 'BABYSITTER_CONFIGS=(\n  "config/babysitter1.toml"\n  "config/babysitter2.toml"\n)\n. ./script/launch_all_rust.sh'
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=node.folder,
        env=node.full_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert "names no file" not in done.stdout


def grepped(node: Node) -> None:
    """What validation scripts grep: names of services, ids of models, the content of an answer, without blanks."""
    told = subprocess.run(
        ["curl", "-s", f"{node.registry}/services"], capture_output=True, text=True, check=True
    ).stdout
    names = set(re.findall(r'"name":"([^"]*)"', told))
    assert {"babysitter-service-1", "babysitter-service-1-server"} <= names
    told = subprocess.run(["curl", "-s", f"{node.router}/models"], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r'"id":"([^"]*)"', told)) == {"model-1", "model-2"}
    body = '{\n  "model": "model-1",\n  "messages": [{"role": "user", "content": "Hello"}],\n  "stream": false\n}'
    ask_it = ["curl", "-s", "-X", "POST", f"{node.router}/v1/chat/completions", "-H", "Content-Type: application/json"]
    told = subprocess.run([*ask_it, "-d", body], capture_output=True, text=True, check=True).stdout
    assert re.search(r'"content":"[^"]+"', told), told


def no_model_is_503(node: Node) -> None:
    assert ask(f"{node.router}/chat/completions", {"model": "nobody", "messages": []})[0] == 503


def logs(*patterns: str) -> Callable[[Node], None]:
    def check(node: Node) -> None:
        for pattern in patterns:
            assert list((node.folder / "logs").glob(pattern)), pattern

    return check


def server_sees_device(node: Node) -> None:
    pid = ask(f"http://localhost:{port(node, 0) + 1}/info")[1]["replica"]["replica_pid"]
    assert psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"] == "0"


def restarted(node: Node) -> None:
    url = f"http://localhost:{port(node, 1) + 1}/info"
    pid = ask(url)[1]["replica"]["replica_pid"]
    psutil.Process(pid).kill()
    until("another server", lambda: ask(url)[1]["replica"]["replica_pid"] not in (None, pid))
    until("ready", lambda: ask(url)[1]["replica"]["status"] == "ready")


def copied_template(node: Node) -> None:
    """The guide's copy of launch_babysitter.sh with an edited block, plain assignments as the guide writes them."""
    script = node.folder / "InfiniLM/scripts/launch_server.py"
    script.parent.mkdir(parents=True)
    script.write_text(
        "import os, sys; given = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "argv = ['--port', given['--port'], '--host', given['--host'], '--model', 'copied']\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'babysitter.mock', *argv])\n"
    )
    (node.folder / "model").mkdir()
    copy = node.folder / "script" / "launch_babysitter_8000.sh"
    shutil.copy(node.folder / "script/launch_babysitter.sh", copy)
    text = copy.read_text()
    block = {
        "PORT": str(port(node, 2)),
        "SERVICE_NAME": '"service-1"',
        "SERVICE_TYPE": '"InfiniLM"  # or "InfiniLM-Rust"',
        "MODEL_PATH": f'"{node.folder}/model"',
        "REGISTRY_URL": f'"{node.registry}"',
        "HPCC_VISIBLE_DEVICES": '"0"',
    }
    for name, value in block.items():
        before = re.findall(rf"^{name}=.*$", text, flags=re.MULTILINE)
        assert len(before) == 1, name
        text = text.replace(before[0], f"{name}={value}")
    copy.write_text(text)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = node.run(copy.name, PATH=path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    until("registered", lambda: ask(f"{node.registry}/services/service-1-server")[0] == 200)


def has_script(name: str) -> Callable[[Node], None]:
    def check(node: Node) -> None:
        assert os.access(node.folder / "script" / name, os.X_OK)

    return check


def stopped_babysitter(node: Node) -> None:
    done = node.run("stop_babysitter.sh", str(port(node, 2)))
    assert (done.returncode, is_free(port(node, 2))) == (0, True), done.stderr


def stopped(script: str, taken: Callable[[Node], int]) -> Callable[[Node], None]:
    def check(node: Node) -> None:
        assert not is_free(taken(node))
        done = node.run(script)
        assert (done.returncode, is_free(taken(node))) == (0, True), done.stderr

    return check


def all_stopped(node: Node) -> None:
    assert node.run("stop_all.sh").returncode == 0
    assert node.left() == []


def one_by_one(node: Node) -> None:
    """Registry and router alone, with the variables of their old blocks."""
    assert node.run("launch_registry.sh", HEALTH_INTERVAL="11").returncode == 0
    done = node.run("launch_router.sh", REGISTRY_URL=node.registry, MAX_ERRORS="4")
    assert done.returncode == 0, done.stderr
    runs_with("registry", "--health-interval 11")(node)
    runs_with("router", "--max-errors 4", "--registry-url {registry}")(node)


def image(node: Node) -> None:
    """The variables, folders and entry point of `docker run`; the image itself is built where docker is."""
    text = (node.folder / "deploy/docker/Dockerfile").read_text()
    for part in ("WORKDIR /app", "COPY config config", "/app/logs", "EXPOSE 8000 18000", "docker_entrypoint.sh ./"):
        assert part in text


WALK = (
    Step("cargo build --release --bin infini-registry …", NOT_NEEDED, now="Python; the scripts make its environment"),
    Step("BABYSITTER_CONFIGS, REGISTRY_PORT, ROUTER_PORT; ./script/launch_all_rust.sh", SAME, launched),
    Step("export BABYSITTER_CONFIGS=(…)", RENAMED, exported_array, now="one string, since bash exports no arrays"),
    Step("BABYSITTER_CONFIGS=(…) where the script is sourced", SAME, sourced_array),
    Step("ROUTER_REGISTRY_URL", SAME, runs_with("router", "--registry-url {registry}")),
    Step(
        "REGISTRY_HEALTH_INTERVAL, REGISTRY_HEALTH_TIMEOUT, REGISTRY_CLEANUP_INTERVAL",
        SAME,
        runs_with("registry", "--health-interval 11", "--health-timeout 4", "--cleanup-interval 12"),
    ),
    Step(
        "ROUTER_HEALTH_INTERVAL, ROUTER_HEALTH_TIMEOUT, ROUTER_REGISTRY_SYNC_INTERVAL",
        SAME,
        runs_with("router", "--health-interval 13", "--health-timeout 6", "--registry-sync-interval 14"),
    ),
    Step("docker run -e … -v …:/app/config -v …:/app/logs", SAME, image),
    Step("docker build -f docker/Dockerfile, docker/Dockerfile.rust", RENAMED, image, now="deploy/docker/Dockerfile"),
    Step("-p 8080:8080 -p 8081:8081", THEIRS, now="the diagram's ports; 8000 and 18000 are the ones in use"),
    Step("./script/launch_all.sh", SAME, has_script("launch_all.sh")),
    Step("curl registry/health", SAME, answers("registry", "/health", "status", "registered_services", "timestamp")),
    Step("curl registry/services", SAME, answers("registry", "/services", "services", "total", "timestamp")),
    Step("curl router/health", SAME, answers("router", "/health", "status", "router", "healthy_services")),
    Step("curl router/models", SAME, answers("router", "/models", "object", "data")),
    Step("curl router/services", SAME, answers("router", "/services", "services", "total")),
    Step("curl router/stats", SAME, answers("router", "/stats", "services", "total_services")),
    Step("curl babysitter:port+1/health", SAME, answers("babysitter", "/health", "infinilm_server_running")),
    Step("validation scripts' greps", SAME, grepped),
    Step("a TOML file with name port registry_url [babysitter] [backend]", SAME, launched),
    Step("env = { CUDA_VISIBLE_DEVICES }", SAME, server_sees_device),
    Step("503 when no service has the model", SAME, no_model_is_503),
    Step("a server that fails is started again", SAME, restarted),
    Step(
        "logs/registry_*.log router_*.log babysitter_*.log",
        SAME,
        logs("registry_*.log", "router_*.log", "babysitter_*.log"),
    ),
    Step("cp script/launch_babysitter.sh, edit its block", SAME, copied_template),
    Step("script/launch_babysitter_9g8b.sh", SAME, has_script("launch_babysitter_9g8b.sh")),
    Step("script/launch_babysitter_qwen.sh", SAME, has_script("launch_babysitter_qwen.sh")),
    Step("./script/stop_babysitter.sh PORT", SAME, stopped_babysitter),
    Step("./script/stop_babysitter.sh", SAME, stopped("stop_babysitter.sh", lambda node: port(node, 0))),
    Step("./script/stop_router.sh", SAME, stopped("stop_router.sh", lambda node: node.router_port)),
    Step("./script/stop_registry.sh", SAME, stopped("stop_registry.sh", lambda node: node.registry_port)),
    Step("./script/launch_registry.sh, ./script/launch_router.sh", SAME, one_by_one),
    Step("./script/stop_all.sh", SAME, all_stopped),
    Step(
        "rust/tests/integration, rust/src/bin, docs/DISTRIBUTED_…, docs/MULTI_SERVICE_…", THEIRS, now="docs/README.md"
    ),
    Step("Rust 1.70, Cargo; Python 3.8 with aiohttp and requests", NOT_NEEDED, now="Python 3.11 or newer alone"),
)


@pytest.mark.parametrize("step", [step for step in WALK if step.check], ids=lambda step: step.thing)
def test_the_maintenance_guide_holds(node: Node, step: Step) -> None:
    assert step.check is not None
    step.check(node)
