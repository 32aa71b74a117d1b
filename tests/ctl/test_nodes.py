"""`svcctl nodes` against a fake registry."""

from typing import Any

from ctl.codes import Code
from tests.ctl.conftest import Suite

PATH = "/api/v1/nodes"
FREE = {"index": 1, "kind": "cuda", "memory_mb": 2048, "used_mb": 512, "busy_percent": 7}
HELD = {"index": 0, "kind": "cuda", "memory_mb": 2048, "replicas": ["abc123def456"], "claims": ["/etc/a.toml"]}


def node(name: str, **members: Any) -> dict[str, Any]:
    return {"node": name, "url": f"http://{name}:18100", "live": 1, "capacity": 9, **members}


async def test_nodes_and_their_accelerators_are_listed(suite: Suite) -> None:
    listed = [
        node("b", draining=True),
        node("a", labels={"zone": "x"}, accelerators=[HELD, FREE]),
        node("c", away=True),
    ]
    suite.answers[f"registry GET {PATH}"] = {"total": 3, "nodes": listed}
    done = await suite.ctl("nodes")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[1] == ["a", "ready", "1/9", "2", "cuda", "1", "zone=x", "http://a:18100"]
    assert [line[1] for line in lines[2:4]] == ["draining", "away"]
    assert lines[-2] == ["a", "0", "cuda", "2", "GiB", "-", "-", "-", "abc123def456,", "/etc/a.toml"]
    assert lines[-1] == ["a", "1", "cuda", "2", "GiB", "512", "MiB", "7%", "-", "free"]


async def test_a_label_does_not_steer_the_terminal(suite: Suite) -> None:
    suite.answers[f"registry GET {PATH}"] = {"total": 1, "nodes": [node("a", labels={"z": "\x1b[2J"})]}
    assert "\x1b" not in (await suite.ctl("nodes")).stdout


async def test_a_fleet_without_agents_says_how_to_begin(suite: Suite) -> None:
    suite.answers[f"registry GET {PATH}"] = {"total": 0, "nodes": []}
    done = await suite.ctl("nodes")
    assert (done.code, done.stdout) == (0, "")
    assert "no node agent is registered" in done.stderr


async def test_a_node_is_drained_and_taken_back(suite: Suite) -> None:
    for verb in ("drain", "undrain"):
        suite.answers[f"registry POST {PATH}/a/{verb}"] = node("a", draining=verb == "drain")
    assert "no new replicas, and has 1" in (await suite.ctl("nodes", "drain", "a")).stderr
    assert "gets replicas again" in (await suite.ctl("nodes", "undrain", "a")).stderr


async def test_a_drain_of_no_node_and_of_one_that_is_not_there_is_refused(suite: Suite) -> None:
    assert (await suite.ctl("nodes", "drain")).code == Code.USAGE
    suite.answers[f"registry POST {PATH}/z/drain"] = (404, {"error": "no agent of node 'z' is registered"})
    done = await suite.ctl("nodes", "drain", "z")
    assert done.code != 0
    assert "no agent of node 'z'" in done.stderr
