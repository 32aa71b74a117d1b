"""The two records of a babysitter in a real registry."""

import os
import signal
import socket
import sys
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

from tests.babysitter.conftest import Registry
from tests.babysitter.real import PROJECT, ask, running, until
from tests.common.ancestors import old_registry, read_services


def record(registry: Registry, name: str) -> dict[str, Any]:
    found = ask(f"{registry.url}/services/{name}") or {}
    return found if "name" in found else {}


def test_host_in_brackets_registers_is_probed_and_serves(tmp_path: Path, registry: Registry) -> None:
    with running(tmp_path, top={"registry_url": registry.url, "host": "[::1]"}) as node:
        babysitter = node.start()
        server = until("server record", lambda: record(registry, "r1-server"))
        own = record(registry, "r1")
        assert (own["host"], own["url"]) == ("::1", f"http://[::1]:{node.port + 1}")
        assert (server["host"], server["url"]) == ("::1", f"http://[::1]:{node.port}")
        healthy = until("probed", lambda: record(registry, "r1-server").get("health_status") == "healthy", 40.0)
        assert healthy
        assert ask(f"{server['url']}/v1/models")["data"][0]["id"] == "m"
        report = ask(f"{own['url']}/info")["replica"]
        assert (report["status"], report["base_url"]) == ("ready", server["url"])
        babysitter.terminate()
        assert babysitter.wait(60) == 0


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
        before = until("record", lambda: (r := record(registry, "r1-server")).get("status") == "running" and r)
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
            until("both are healthy", lambda: len(old.records) == 2 and old.beats > 10 and not old.unhealthy())
            assert old.said["r1"] == {"running"}
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


def test_model_loaded_later_and_model_swapped_behind_the_address_reach_the_record_W15(
    tmp_path: Path, registry: Registry
) -> None:
    top, restarts = {"registry_url": registry.url}, {"heartbeat_interval": 60}
    with running(tmp_path, top=top, restarts=restarts) as node:
        mock = ["-m", "babysitter.mock", "--port", str(node.port), "--model", "m"]
        node.backend = {"type": "command", "command": sys.executable, "args": mock, "work_dir": str(PROJECT)}
        node.start()
        node.ready()
        until("the record", lambda: record(registry, "r1-server"))
        for models in (["m", "lora"], ["other"]):
            node.server("/mock/models", {"models": models})
            found = until(str(models), partial(serving, registry, models))
            assert [model["id"] for model in found["models_list"]] == models
            until("the report", partial(reporting, registry, models))


def metadata(registry: Registry) -> dict[str, Any]:
    return dict(record(registry, "r1-server").get("metadata", {}))


def serving(registry: Registry, models: list[str]) -> dict[str, Any] | None:
    found = metadata(registry)
    return found if found.get("models") == models else None


def reporting(registry: Registry, models: list[str]) -> bool:
    return bool(metadata(registry).get("replica", {}).get("models") == models)


def test_server_with_sixteen_adapters_is_registered_W16(tmp_path: Path, registry: Registry) -> None:
    names = [f"a-lora-adapter-with-a-long-name-{number}-{'x' * 400}" for number in range(32)]
    backend = {"type": "mock", "models": names}
    with running(tmp_path, backend=backend, top={"registry_url": registry.url}) as node:
        node.start()
        node.ready()
        found = until("the record", lambda: metadata(registry))
        assert (found["models"], "models_list" in found) == (names, False)
        objects = until("objects in the report", lambda: metadata(registry).get("replica", {}).get("models_list"))
        assert [model["id"] for model in objects] == names


def test_refused_registration_is_a_state_with_its_reason_W16(tmp_path: Path, registry: Registry) -> None:
    top = {"registry_url": registry.url, "metadata": {"note": "n" * 8130}}
    with running(tmp_path, top=top, restarts={"heartbeat_interval": 0.2}) as node:
        node.start()
        node.ready()
        health = until("refused", lambda: (h := node.health()).get("status") == "unregistered" and h)
        assert "8192 bytes" in health["registration_error"]
        assert record(registry, "r1-server") == {}
        # The babysitter's own record is short enough, and carries the reason to the page, status and doctor.
        shown = until("told", lambda: (ask(f"{registry.url}/api/v1/replicas") or {}).get("replicas"))
        until("the reason", lambda: "8192" in str(replicas(registry)[0]["registration_error"]))
        assert len(shown) == 1


def replicas(registry: Registry) -> list[dict[str, Any]]:
    return list((ask(f"{registry.url}/api/v1/replicas") or {}).get("replicas") or [])


def test_what_a_router_gets_nothing_from_must_prove_itself_at_once_W26(tmp_path: Path, registry: Registry) -> None:
    beats, probes = {"heartbeat_interval": 0.2}, {"interval_s": 60}
    with running(tmp_path, top={"registry_url": registry.url}, restarts=beats, probes=probes) as node:
        node.start()
        node.ready()
        until("the record", lambda: record(registry, "r1-server").get("status") == "running")
        before = node.server("/mock/state")["requests"]
        ask(f"{registry.url}/v1/routers/router-1/failing", {"failing": {"r1-server": "nothing comes"}})
        until("a token was asked for", lambda: node.server("/mock/state")["requests"] > before)
        assert "router-1: nothing comes" in node.log()
