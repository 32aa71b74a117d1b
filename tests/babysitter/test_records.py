"""The two records of a babysitter in a real registry."""

import os
import signal
from pathlib import Path
from typing import Any

from tests.babysitter.conftest import Registry
from tests.babysitter.real import ask, running, until


def record(registry: Registry, name: str) -> dict[str, Any]:
    found = ask(f"{registry.url}/services/{name}") or {}
    return found if "name" in found else {}


def test_records_follow_the_servers_life(tmp_path: Path, registry: Registry) -> None:
    backend = {"type": "mock", "models": ["m"], "args": ["--slow-start-s", "0.5"]}
    with running(
        tmp_path, backend=backend, top={"registry_url": registry.url}, restarts={"restart_delay": 0.5}
    ) as node:
        babysitter = node.start()
        own = until("own record", lambda: record(registry, "r1"))
        assert (own["port"], own["metadata"]["type"], own["status"]) == (node.port + 1, "mock", "running")
        assert record(registry, "r1-server") == {}
        server = until("server record", lambda: record(registry, "r1-server"))
        assert (server["port"], server["status"], server["is_healthy"]) == (node.port, "running", True)
        assert server["metadata"]["type"] == "openai-api"
        assert server["metadata"]["models"] == ["m"]
        assert server["metadata"]["parent_service"] == "r1"
        os.kill(node.ready(), signal.SIGKILL)
        until("out of rotation", lambda: record(registry, "r1-server")["status"] != "running", 2.0)
        until("back", lambda: record(registry, "r1-server")["status"] == "running")
        report = record(registry, "r1")["metadata"]["replica"]
        assert (report["status"], report["restart_count"]) == ("ready", 1)
        babysitter.terminate()
        assert babysitter.wait(60) == 0
        assert record(registry, "r1") == record(registry, "r1-server") == {}


def test_registry_that_forgot_everything_is_told_again_C1(tmp_path: Path, registry: Registry) -> None:
    with running(tmp_path, top={"registry_url": registry.url}, restarts={"heartbeat_interval": 0.2}) as node:
        node.start()
        pid = node.ready()
        until("record", lambda: record(registry, "r1-server"))
        registry.kill()
        registry.start()
        until("registered again", lambda: record(registry, "r1-server") and record(registry, "r1"))
        assert node.ready() == pid


def test_killed_babysitters_records_are_taken_over_B1(tmp_path: Path, registry: Registry) -> None:
    with running(tmp_path, top={"registry_url": registry.url}) as node:
        first = node.start()
        pid = node.ready()
        before = until("record", lambda: record(registry, "r1-server"))
        first.kill()
        first.wait()
        assert record(registry, "r1-server")["status"] == "running"
        node.start()
        assert node.ready() == pid
        after = until(
            "takeover", lambda: (r := record(registry, "r1-server"))["incarnation"] > before["incarnation"] and r
        )
        assert after["instance_id"] == before["instance_id"]
        assert after["status"] == "running"
