"""The two records of a babysitter in a real registry."""

import os
import signal
import socket
import urllib.request
from pathlib import Path
from typing import Any

from tests.babysitter.conftest import Registry
from tests.babysitter.real import ask, running, until
from tests.common.ancestors import old_registry, read_services


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


def test_services_of_registry_and_babysitter_are_read_by_the_ancestors_router_W21(
    tmp_path: Path, registry: Registry
) -> None:
    beats = {"heartbeat_interval": 0.2}
    with running(tmp_path, top={"registry_url": registry.url, "weight": 2.0}, restarts=beats) as node:
        node.start()
        node.ready()
        until("both records", lambda: record(registry, "r1-server") and record(registry, "r1"))
        with urllib.request.urlopen(f"{registry.url}/services") as answer:  # noqa: S310 - our own URL
            found = read_services(answer.read())
        assert {name: service.weight for name, service in found.items()} == {"r1": 1, "r1-server": 2}
        assert found["r1"].status == found["r1-server"].status == "running"


def test_babysitter_under_the_ancestors_registry_is_healthy_there_W42(tmp_path: Path) -> None:
    with old_registry() as (old, url):
        with running(tmp_path, top={"registry_url": url}, restarts={"heartbeat_interval": 0.1}) as node:
            node.start()
            node.ready()
            until("both records beat", lambda: len(old.records) == 2 and old.beats > 10)
            assert old.unhealthy() == []
        assert old.refused == []


def test_draining_is_no_status_of_the_replica_api_W42(tmp_path: Path, registry: Registry) -> None:
    top = {"registry_url": registry.url, "on_exit": "stop"}
    restarts = {"drain_s": 30, "heartbeat_interval": 0.1}
    with running(tmp_path, top=top, restarts=restarts) as node:
        babysitter = node.start()
        node.ready()
        until("the record", lambda: record(registry, "r1-server"))
        node.server("/mock/knobs", {"hold": True})
        with HeldRequest(node.port):
            babysitter.terminate()
            until("the record drains", lambda: record(registry, "r1-server").get("status") == "draining")
            said = until("reported", lambda: (ask(f"{registry.url}/api/v1/replicas") or {}).get("replicas"))
            assert [replica["status"] for replica in said] == ["stopping"]
            assert record(registry, "r1")["status"] == "running"
            assert node.state()["status"] == "stopping"
        assert babysitter.wait(60) == 0


class HeldRequest:
    """A request that the mock holds, so that a drain has something to wait for."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        body = b'{"model":"m","prompt":"x"}'
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.socket.sendall(head + body)

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, *_: object) -> None:
        self.socket.close()
