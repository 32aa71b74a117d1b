"""One launcher: what the scripts start svcctl sees and stops, and the other way round."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.node import Node, copy_tree
from tests.e2e.test_launch import one_replica, server_port

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crosswise") / "the project"
    copy_tree(folder)
    return folder


@pytest.fixture
def node(copy: Path) -> Iterator[Node]:
    with one_replica(copy) as node:
        yield node


def svcctl(node: Node, *argv: str) -> subprocess.CompletedProcess[str]:
    """svcctl of this source tree, from another folder, told nothing of where the node's state is."""
    kept = {
        name: value for name, value in node.full_environment().items() if name not in ("SVC_STATE_DIR", "PYTHONPATH")
    }
    return subprocess.run(
        [sys.executable, "-P", "-m", "ctl", *argv],
        cwd=node.folder.parent,
        env={**kept, "PYTHONPATH": str(node.folder), "HOME": str(node.folder.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def names(node: Node) -> list[str]:
    return ["registry", "router", f"babysitter_{server_port(node)}"]


def test_what_the_scripts_launch_svcctl_shows_leaves_alone_and_ends(node: Node) -> None:
    launched = node.run("launch_all.sh")
    assert launched.returncode == 0, launched.stdout + launched.stderr
    shown = svcctl(node, "status", "--json")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    seen = {one["name"]: one["pid"] for one in json.loads(shown.stdout)["services"]}
    assert seen == {name: node.pid(name) for name in names(node)}
    assert [model["id"] for model in json.loads(svcctl(node, "models", "--json").stdout)["data"]] == ["m"]

    again = svcctl(node, "up", "--no-agent", "--json", str(node.folder / "config/one.toml"))
    assert again.returncode == 0, again.stderr
    assert {one["name"]: one["already"] for one in json.loads(again.stdout)["started"]} == dict.fromkeys(seen, True)

    assert svcctl(node, "down", "replica").returncode == 0
    assert sorted(path.stem for path in (node.folder / "logs").glob("*.pid")) == ["registry", "router"]
    ended = svcctl(node, "down")
    assert ended.returncode == 0, ended.stderr
    assert node.left() == []
    assert list((node.folder / "logs").glob("*.pid")) == []


def test_what_svcctl_starts_the_scripts_show_leave_alone_and_stop(node: Node) -> None:
    ports = ("--registry-port", str(node.registry_port), "--router-port", str(node.router_port))
    started = svcctl(node, "up", "--no-agent", *ports, str(node.folder / "config/one.toml"))
    assert started.returncode == 0, started.stdout + started.stderr
    pids = {name: node.pid(name) for name in names(node)}
    assert all(os.getsid(pid) == pid for pid in pids.values())
    assert (node.folder / "logs" / f"registry_{node.registry_port}.log").is_file()

    shown = node.run("status.sh")
    assert shown.returncode == 0, shown.stdout
    rows = {line.split()[0]: line.split()[1:4:2] for line in shown.stdout.splitlines()[1:]}
    assert rows == {name: [str(pid), "healthy"] for name, pid in pids.items()}

    again = node.run("launch_all.sh")
    assert again.returncode == 0, again.stderr
    for name in names(node):
        assert f"{name}: runs already" in again.stdout
    assert {name: node.pid(name) for name in names(node)} == pids

    assert node.run("stop_babysitter.sh", "replica").returncode == 0
    stopped = node.run("stop_all.sh")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert node.left() == []
    assert "nothing was started" in svcctl(node, "down").stderr
