"""svcctl as a person sees it: a real node with an agent, a package index, and commands in a pseudo-terminal.

With SVC_SCREENS=DIR the screens are written there as SVG; those in docs/screens were made so.
"""

import functools
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ctl.codes import Code
from tests.babysitter.stand_in.wheels import make_wheel, suite
from tests.ctl.node import ROOT, Node
from tests.ctl.terminal import Terminal, svcctl
from tests.ctl.test_up import all_free
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

BUILD = "0.0.0+build.1b9c30c813"
SITTER = """
registry_url = "{registry}"

[babysitter]
heartbeat_interval = 1
restart_delay = 0.2
drain_s = 1

[probes]
start_interval_s = 0.2

[cbclient]
index_url = "{index}/simple/"
tries = 1
"""


ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
"""How a terminal is told to take another screen, and to go back."""


READY = re.compile(rb"[3-9]/[3-9] ready")


class Quiet(SimpleHTTPRequestHandler):
    """A package index: folders of wheels, listed as pages of links."""

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The packages of one build, behind HTTP."""
    root = tmp_path_factory.mktemp("index")
    made = [*suite(root / "all", BUILD), make_wheel(root / "all", "stand-in-dep", "1.0")]
    for wheel in made:
        folder = root / "simple" / wheel.name.split("-", maxsplit=1)[0].replace("_", "-")
        folder.mkdir(parents=True, exist_ok=True)
        wheel.rename(folder / wheel.name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def make_node(folder: Path, index: str) -> Node:
    """A node whose agent finds packages at `index`; nothing of it runs yet."""
    ports = (18000, 8000, 18100) if os.environ.get("SVC_SCREENS") else (free_port(), free_port(), free_port())
    node = Node(folder / "state", *ports)
    sitter = folder / "babysitter.toml"
    sitter.write_text(SITTER.format(registry=f"http://127.0.0.1:{node.registry_port}", index=index))
    first = free_port()
    settings = f'babysitter_config = "{sitter}"\nfirst_port = {first}\nlast_port = {first + 199}\nnode = "node-1"\n'
    (folder / "agent.toml").write_text(settings + "heartbeat_interval = 1\n")
    (folder / "request.json").write_text(json.dumps(request()))
    return node


def up(node: Node) -> tuple[str, ...]:
    """The words that launch it, with two mock servers."""
    first = next(port for port in iter(free_port, None) if all_free(port + 10))
    demo = "8001" if os.environ.get("SVC_SCREENS") else str(first)
    return ("up", "--demo", "--demo-port", demo, *node.ports, "--agent-config", str(node.state.parent / "agent.toml"))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, index: str) -> Iterator[Node]:
    """A node that runs; the tests of this module share it, in any order."""
    node = make_node(tmp_path_factory.mktemp("terminal"), index)
    done = node.ctl(*up(node))
    assert done.code == 0, done.stderr
    yield node
    node.ctl("down", "--replicas", "--timeout", "30")
    node.sweep()


@pytest.fixture(scope="module")
def replica(node: Node) -> str:
    """A replica of it that is ready."""
    file = node.state.parent / "request.json"
    done = node.ctl("replicas", "create", "-f", str(file), "--wait", "--timeout", "100")
    assert done.code == 0, done.stderr
    listed = node.json("replicas", "list")["replicas"]  # with the demo's, and that of the test before, which is stopped
    ready = [info for info in listed if info["status"] == "ready" and info["model_name"] == "llama3.1-8b"]
    return str(ready[0]["replica_id"])


def replicas(node: Node) -> set[str]:
    """Ids of the model's replicas that are there."""
    listed = node.json("replicas", "list")["replicas"]
    return {str(info["replica_id"]) for info in listed if info["model_name"] == "llama3.1-8b"}


def request(**changes: Any) -> dict[str, Any]:
    """A create request whose compile job takes a moment."""
    return {
        "server_mode": "replica",
        "model_name": "llama3.1-8b",
        "placement": {"multibox": "dh1", "app_tag": BUILD},
        "full_config": {"stand_in": {"compile_s": 2, "execute_s": 0.5}, "runconfig": {"job_priority": "p1"}},
        **changes,
    }


def terminal(node: Node, *argv: str, lines: int = 30) -> Terminal:
    """Svcctl in a terminal on that node."""
    return svcctl(*argv, env=node.environment(), cwd=node.cwd, lines=lines)


def keep(shown: Terminal, name: str, command: str, lines: int | None = None) -> None:
    """Write the screen for the documentation, when asked to."""
    folder = os.environ.get("SVC_SCREENS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.svg").write_text(shown.svg(command, lines=lines))


def test_up_draws_a_bar_for_each_part_and_down_ends_the_node(tmp_path: Path, index: str) -> None:
    node = make_node(tmp_path, index)
    try:
        with terminal(node, *up(node)) as shown:
            shown.until(lambda text: "registry" in text and "━" in text, "the registry's bar")
            assert shown.end() == 0, shown.text
            assert f"ready at http://127.0.0.1:{node.registry_port}" in shown.text
            assert "mock-small at" in shown.text
            assert "✔" in shown.text
            keep(shown, "up", "svcctl up --demo")
        done = node.ctl("down", "--replicas", "--timeout", "30")
        assert done.code == 0, done.stderr
        assert node.left() == []
    finally:
        node.sweep()


def test_create_shows_each_stage_and_ends_ready_and_stop_waits_for_the_end(node: Node) -> None:
    file, before = node.state.parent / "request.json", replicas(node)
    with terminal(node, "replicas", "create", "-f", str(file), "--wait", lines=12) as shown:
        # In what was written, not only on the screen: on a busy machine a stage may be over before it is looked at.
        shown.until(lambda _: "creating · ".encode() in shown.raw, "a stage of the deployment")
        shown.until(lambda _: b"wsjob-compile" in shown.raw, "the compile job's id")
        keep(shown, "create-compiling", "svcctl replicas create -f request.json --wait")
        assert shown.end() == 0, shown.text
        assert "ready at http://" in shown.text
        keep(shown, "create", "svcctl replicas create -f request.json --wait")
    [made] = replicas(node) - before
    done = node.ctl("replicas", "stop", made, "--delete", "--wait", "--timeout", "60")
    assert done.code == 0, done.stderr


def test_the_replica_is_listed_told_and_asked(node: Node, replica: str) -> None:
    replica_id = replica
    [one] = [info for info in node.json("replicas", "list")["replicas"] if info["replica_id"] == replica_id]
    assert one["status"] == "ready"
    info = node.json("replicas", "get", replica_id)
    assert info["compile_wsjob"]
    assert info["execute_wsjob"]
    timeline = node.json("replicas", "timeline", replica_id)
    assert {"venv", "install"} <= {stage["name"] for stage in timeline["stages"]}
    assert timeline["transitions"][-1]["to"] == "ready"
    assert node.ctl("replicas", "logs", replica_id, "--stream", "deploy").stdout
    assert node.ctl("replicas", "wait", replica_id).code == 0
    assert node.ctl("replicas", "wait", "000000000000").code == Code.NOT_FOUND
    with terminal(node, "replicas", "timeline", replica_id, lines=24) as shown:
        assert shown.end() == 0
        keep(shown, "timeline", f"svcctl replicas timeline {replica_id}")


@pytest.mark.usefixtures("replica")
def test_top_shows_the_fleet_live_and_ends_with_q(node: Node) -> None:
    ask = ("chat", "mock-small", "Hello", "--max-tokens", "150")
    with terminal(node, "top", "--interval", "0.5", lines=16) as shown, ThreadPoolExecutor(5) as pool:
        shown.until(lambda text: "mock-small" in text, "the replicas")
        asked = [pool.submit(node.ctl, *ask[:1], model, *ask[2:]) for model in ["mock-large", *["mock-small"] * 3]]
        shown.until(lambda text: re.search("[1-4] in flight", text) is not None, "requests under way")
        shown.until(lambda text: busy(text) != "" and "TTFT -" not in text, "pace and time to the first byte")
        assert READY.search(shown.raw) is not None
        if os.environ.get("SVC_SCREENS"):  # on a quiet machine
            shown.until(lambda text: "4 in flight" in text, "all of them")
        keep(shown, "top", "svcctl top")
        for future in asked:
            assert future.result().code == 0
        shown.press("s")
        shown.until(lambda text: "sorted by name" in text, "another order")
        shown.press("q")
        assert shown.end() == 0
        assert back_to_the_old_screen(shown)
        assert READY.search(shown.raw[shown.raw.rindex(LEAVE) :])  # the last look stays


def back_to_the_old_screen(shown: Terminal) -> bool:
    """The program left the screen that it had taken, and showed the cursor again."""
    return shown.raw.rindex(LEAVE) > shown.raw.rindex(ENTER) and shown.raw.rindex(b"\x1b[?25h") > shown.raw.rindex(
        b"\x1b[?25l"
    )


def busy(text: str) -> str:
    """What the line of mock-small says of tokens per second."""
    header = next((line for line in text.splitlines() if "TOK/S" in line), "")
    row = next((line for line in text.splitlines() if line.startswith("mock-small")), "")
    end = header.find("TOK/S") + len("TOK/S")
    return row[end - len("TOK/S") : end].strip(" -")


def test_a_conversation_remembers_what_was_said_and_ends_with_the_file(node: Node) -> None:
    with terminal(node, "chat", "mock-small", "--max-tokens", "12", lines=16) as shown:
        shown.until(lambda text: "\n>" in text, "the prompt")
        shown.press("Hello there\n")
        shown.until(lambda text: text.count("\n>") == 2, "the next prompt")
        shown.press("And again\n")
        shown.until(lambda text: text.count("\n>") == 3, "the last prompt")
        assert shown.text.count("first token after") == 2
        keep(shown, "chat", "svcctl chat mock-small")
        shown.press("\x04")
        assert shown.end() == 0
        assert "This is mock-small answering" in shown.text


def test_ctrl_c_leaves_the_terminal_as_it_was(node: Node) -> None:
    with terminal(node, "top", lines=16) as shown:
        shown.until(lambda text: "mock-small" in text, "the replicas")
        shown.process.send_signal(signal.SIGINT)
        assert shown.end() == Code.INTERRUPTED
        assert "Traceback" not in shown.text
        assert back_to_the_old_screen(shown)


def test_a_drained_server_is_shown_and_explained(node: Node) -> None:
    assert node.ctl("drain", "mock-small", "--wait", "--timeout", "30").code == 0
    assert node.ctl("explain", "mock-small").code == Code.FAILED
    assert node.ctl("undrain", "mock-small").code == 0


def test_doctor_on_a_terminal(node: Node) -> None:
    with terminal(node, "doctor", lines=30) as shown:
        assert shown.end() == 0, shown.text
        assert "CHECK" in shown.text
        keep(shown, "doctor", "svcctl doctor")


def test_a_replica_that_cannot_be_deployed_is_exit_1_with_the_reason(node: Node) -> None:
    file = node.state.parent / "wrong.json"
    file.write_text(json.dumps(request(placement={"multibox": "dh1", "app_tag": "0.0.0+nowhere"})))
    done = node.ctl("replicas", "create", "-f", str(file), "--timeout", "100", "--wait")
    assert done.code == Code.FAILED, done.stderr
    assert "is failed" in done.stderr


@pytest.mark.parametrize("name", ["up", "create-compiling", "create", "timeline", "top", "chat", "doctor"])
def test_the_screens_are_in_the_documentation(name: str) -> None:
    page = (ROOT / "docs" / "svcctl.md").read_text()
    assert f"screens/{name}.svg" in page
    drawn = (ROOT / "docs" / "screens" / f"{name}.svg").read_text()
    assert drawn.startswith("<svg")
    assert "http://" not in drawn.replace("http://www.w3.org", "").replace("http://127.0.0.1", "")
