"""Replicas of templates: the create call, what is written down, the lists, and what becomes of them when all is killed."""

import json
import os
import signal
import socket
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from babysitter import identity
from babysitter.agent import processes
from babysitter.agent.registration import AgentRegistration
from common.clock import SystemClock
from tests.babysitter.agent.agent_process import AgentProcess, agent
from tests.babysitter.agent.conftest import Client, StartAgent, create, info, manager_of, reached
from tests.babysitter.conftest import Registry
from tests.babysitter.real import PROJECT, ask, shims, until

QUICK = '{"babysitter": {"restart_delay": 0.1, "drain_s": 1, "stop_grace_s": 1}, "probes": {"start_interval_s": 0.1}}'
BABYSITTER = [sys.executable, "-m", "babysitter"]


def wanted(template: str = "mock", **changes: Any) -> dict[str, Any]:
    parameters = changes.pop("parameters", {"model": "m"})
    return {"backend": {"template": template, "parameters": parameters}, **changes}


async def refused(client: Client, body: dict[str, Any]) -> tuple[int, str, str]:
    async with client.post("/api/v1/replicas", json=body) as answer:
        content = await answer.json()
        assert not list(manager_of(client).store.root.glob("[!.s]*/request.json")), "nothing is half made"
        return answer.status, content.get("field", ""), content["error"]


# The call.


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        (
            wanted("no-such"),
            "backend.template",
            "there are: command-example, infinilm, infinilm-rust, llama-cpp, llama-cpp-rpc, mock",
        ),
        (wanted("cbclient"), "backend.template", "server_mode"),
        (wanted("../mock"), "backend.template", ""),
        (wanted(5), "backend.template", ""),  # type: ignore[arg-type] # that is the fault
        ({"backend": {}}, "backend.template", ""),
        ({"backend": "mock"}, "backend", ""),
        (wanted(parameters={}), "backend.parameters.model", "is needed"),
        (wanted(parameters=[]), "backend.parameters", ""),
        (wanted(parameters={"model": "m", "tokens": "many"}), "backend.parameters.tokens", "must be an integer"),
        (
            wanted("vllm", parameters={"model": "m", "max_model_len": "x"}),
            "backend.parameters.max_model_len",
            "an integer",
        ),
        (wanted(parameters={"model": "--evil"}), "backend.parameters.model", "may not begin with -"),
        (wanted(parameters={"model": "m", "command": "sh"}), "backend.parameters.command", "no parameter"),
        (wanted(model_name="--evil"), "model_name", "may not begin with -"),
        (wanted(model_name="a\nb"), "model_name", ""),
        (wanted(parameters={"model": "m" * 300}), "model_name", "256"),
        (wanted(server_mode="replica"), "server_mode", "leave one of them out"),
        (wanted(metadata={"x": "y" * 9000}), "metadata", "8192"),
        (wanted(placement={"node": "elsewhere"}), "placement.node", "n1"),
        (wanted(accelerators=-1), "accelerators", ""),
        (wanted(accelerators=9), "accelerators", "needs 9"),
    ],
)
async def test_what_is_wrong_is_a_422_that_names_the_field(
    client: Client, body: dict[str, Any], field: str, text: str
) -> None:
    status, named, error = await refused(client, body)
    assert (status, named) == (422, field)
    assert text in error


async def test_parameters_that_no_babysitter_would_take_leave_nothing(start_agent: StartAgent, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(
        '[parameters.name]\nrequired = true\n[backend]\ntype = "mock"\nmodels = ["m"]\nenv = { A = "{name}" }\n'
    )
    client = await start_agent(templates_dir=tmp_path)
    assert (await refused(client, wanted("t", parameters={"name": "x"})))[:2] == (422, "model_name")
    async with client.post("/api/v1/replicas", json=wanted("t", parameters={"name": "x"}, model_name="m")) as answer:
        assert answer.status == 201


async def test_the_rendered_backend_is_written_once_and_a_changed_template_touches_nothing(
    start_agent: StartAgent, tmp_path: Path
) -> None:
    file = tmp_path / "t.toml"
    text = '[parameters.model]\nrequired = true\n[backend]\ntype = "command"\ncommand = "serve"\nargs = ["{model}", "{port}"]\n'
    file.write_text(text)
    client = await start_agent(templates_dir=tmp_path)
    body = wanted("t", parameters={"model": "a b; c"}, request_id="r1", metadata={"deployment": "d", "revision": 3})
    async with client.post("/api/v1/replicas", json=body) as answer:
        made = await answer.json()
        assert answer.status == 201
    shown = await info(client, made["replica_id"])
    path = manager_of(client).store.directory(made["replica_id"]) / "backend.json"
    before = path.read_bytes()
    content = json.loads(before)
    assert content["backend"]["args"] == ["a b; c", str(shown["port"])]
    assert content["metadata"] == {"template": "t"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert (shown["model_name"], shown["server_mode"], shown["request_id"]) == ("a b; c", None, "r1")
    assert {"deployment": "d", "revision": 3}.items() <= shown["metadata"].items()

    file.write_text("broken")
    async with client.post("/api/v1/replicas", json=body) as answer:
        assert (answer.status, (await answer.json())["replica_id"]) == (200, made["replica_id"])
    async with client.post("/api/v1/replicas", json={**body, "metadata": {}}) as answer:
        assert answer.status == 409
    async with client.post("/api/v1/replicas", json={**body, "request_id": "r2"}) as answer:
        assert answer.status == 422
        assert "is of no use" in (await answer.json())["error"]
    assert path.read_bytes() == before


async def test_members_that_no_template_uses_are_told(client: Client) -> None:
    body = wanted(full_config={}, placement={"node": "n1", "multibox": "x"}, accelerators=None)
    async with client.post("/api/v1/replicas", json=body) as answer:
        content = await answer.json()
    assert [it["field"] for it in content["warnings"]] == ["full_config", "placement.multibox"]


async def test_templates_are_listed_and_a_broken_one_with_its_fault(start_agent: StartAgent, tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text(
        'description = "g"\n[needs]\naccelerators = 2\n[backend]\ntype = "mock"\nmodels = ["m"]\n'
    )
    (tmp_path / "bad.toml").write_text("[backend]\n")
    client = await start_agent(templates_dir=tmp_path)
    async with client.get("/api/v1/templates") as answer:
        content = await answer.json()
    listed = {it["name"]: it for it in content["templates"]}
    assert content["total"] == 3
    assert listed["good"]["accelerators"] == 2
    assert listed["good"]["nodes"] == ["n1"]
    assert "error" not in listed["good"]
    assert listed["bad"]["error"].startswith("backend.type")
    assert "release server" in listed["cbclient"]["description"]


async def test_the_heartbeat_tells_templates_and_a_silent_replicas_deployment(start_agent: StartAgent) -> None:
    client = await start_agent(babysitter_command=("/bin/sh", "-c", "exit 78"))
    replica_id = await create(client, metadata={"deployment": "d", "revision": 2, "other": "x"})
    await reached(client, replica_id, "failed")
    manager = manager_of(client)
    registration = AgentRegistration(manager.settings, manager, clock=SystemClock(), port=1, instance_id="i")
    report = registration.report()
    assert report.replicas[0].metadata == {"node": "n1", "deployment": "d", "revision": 2}
    assert [it.name for it in report.templates if it.parameters] == [
        "command-example", "infinilm", "infinilm-rust", "llama-cpp", "llama-cpp-rpc", "mock", "mock-group", "sglang-group",
        "transformers", "vllm", "vllm-group", "vllm-ray",
    ]  # fmt: skip


# Real babysitters, and mock servers.


def node_of(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "babysitters.json"
    path.write_text(QUICK)
    return {
        "settings": {"babysitter_command": BABYSITTER, "babysitter_config": str(path)},
        "env": {"PYTHONPATH": str(PROJECT)},
    }


def make(node: AgentProcess, body: dict[str, Any]) -> str:
    return str(ask(f"{node.url}/api/v1/replicas", body)["replica_id"])


def babysitter_pid(node: AgentProcess, replica_id: str) -> int:
    found = processes.scan(node.root).get(replica_id, [])
    return found[0].process.pid if found else 0


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_a_replica_of_a_template_serves_is_adopted_after_any_kill_and_goes(tmp_path: Path) -> None:
    with agent(tmp_path, **node_of(tmp_path)) as node:
        node.start()
        body = wanted(
            parameters={"model": "weights", "start_delay_s": 0.5, "tokens": 3},
            model_name="nice name",
            request_id="dep-u-1",
            metadata={"deployment": "d", "revision": 7},
        )
        replica_id = make(node, body)
        ready = node.reached(replica_id, "ready")
        assert ready["models"] == ["nice name"]
        own = ask(f"http://127.0.0.1:{ready['port'] + 1}/info")
        assert {"deployment": "d", "revision": 7, "template": "mock", "node": "n1"}.items() <= own["metadata"].items()
        assert own["replica"]["metadata"] == {"deployment": "d", "revision": 7}
        server = ready["replica_pid"]

        before = babysitter_pid(node, replica_id)
        os.kill(before, signal.SIGKILL)
        until("another babysitter", lambda: babysitter_pid(node, replica_id) not in (0, before))
        assert node.reached(replica_id, "ready")["replica_pid"] == server

        node.end(signal.SIGKILL)
        node.start()
        assert make(node, body) == replica_id
        assert node.reached(replica_id, "ready")["replica_pid"] == server
        assert len(processes.scan(node.root)[replica_id]) == 1

        node.end(signal.SIGKILL)
        for pid in (babysitter_pid(node, replica_id), *shims(node.root), server):
            os.kill(pid, signal.SIGKILL)
        node.start()
        again = node.reached(replica_id, "ready")
        assert again["replica_pid"] != server
        assert again["models"] == ["nice name"]

        answer = ask(
            f"{ready['base_url']}/v1/chat/completions",
            {"model": "nice name", "messages": [{"role": "user", "content": "hi"}]},
        )
        assert answer["usage"]["completion_tokens"] == 3
        ask(f"{node.url}/api/v1/replicas/{replica_id}/stop", {})
        node.reached(replica_id, "stopped")
        until(
            "nothing is left",
            lambda: not [it for e in node.root.glob("*/attempts/*") for it in identity.bearers(e.name)],
        )


@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "numbers", [range(2), pytest.param(range(2, 12), marks=pytest.mark.world)], ids=["two", "ten more"]
)
def test_a_start_that_is_killed_at_every_instant_makes_one_server(tmp_path: Path, numbers: range) -> None:
    with agent(tmp_path, **node_of(tmp_path)) as node:
        for number in numbers:
            node.start()
            body = wanted(parameters={"model": "m", "start_delay_s": 1}, request_id=f"dep-u-{number}")
            if number % 2:
                make(node, body)
                time.sleep(0.15 * number)
            else:
                fire_and_forget(node, body)
            node.end(signal.SIGKILL)
            node.start()
            replica_id = make(node, body)
            assert [it["request_id"] for it in node.infos().values()].count(f"dep-u-{number}") == 1
            ready = node.reached(replica_id, "ready")
            servers = {it.pid for e in (node.root / replica_id).glob("attempts/*") for it in identity.bearers(e.name)}
            assert ready["replica_pid"] in servers
            assert len(processes.scan(node.root)[replica_id]) == 1
            ask(f"{node.url}/api/v1/replicas/{replica_id}/stop", {"force": True})
            node.reached(replica_id, "stopped")
            node.end()


@pytest.mark.e2e
def test_a_program_that_is_not_there_is_told_and_a_retry_begins_again(tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    program = tmp_path / "serve"
    (folder / "own.toml").write_text(
        f'models = ["m"]\n[parameters.model]\nrequired = true\n[backend]\ntype = "command"\ncommand = "{program}"\nargs = ["{{port}}"]\n'
    )
    given = node_of(tmp_path)
    given["settings"]["templates_dir"] = str(folder)
    with agent(tmp_path, **given) as node:
        node.start()
        replica_id = make(node, wanted("own"))
        failed = node.reached(replica_id, "failed")
        assert "does not exist" in failed["error_message"]
        program.write_text(
            f"#!/bin/sh\necho in $PWD at $1 >&2\nexec {sys.executable} -m babysitter.mock --model m --port $1\n"
        )
        program.chmod(0o755)
        ask(f"{node.url}/api/v1/replicas/{replica_id}/retry", {})
        ready = node.reached(replica_id, "ready")
        url = f"{node.url}/api/v1/replicas/{replica_id}/logs?stream=stderr"
        with urllib.request.urlopen(url, timeout=10) as log:  # noqa: S310 - our own
            assert f"in {ready['workdir']} at {ready['port']}" in log.read().decode()


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_the_registry_passes_it_on_and_both_records_tell_the_deployment(tmp_path: Path, registry: Registry) -> None:
    given = node_of(tmp_path)
    given["settings"] |= {"registry_url": [registry.url], "heartbeat_interval_s": 0.2}
    with agent(tmp_path, **given) as node:
        node.start()

        def templates() -> Any:
            return {it["name"]: it for it in ask(f"{registry.url}/api/v1/templates")["templates"]}.get("mock")

        told = until("the heartbeat tells templates", templates)
        assert told["nodes"] == ["n1"]
        assert told["parameters"]["required"] == ["model"]
        marks = {"deployment": "d", "revision": 4}
        body = wanted(model_name="served", request_id="asked-1", metadata=marks, placement={"node": "n1"})
        replica_id = ask(f"{registry.url}/api/v1/replicas", body)["replica_id"]

        def records() -> Any:
            found = {it["name"]: it["metadata"] for it in ask(f"{registry.url}/services")["services"]}
            return {replica_id, f"{replica_id}-server"} <= found.keys() and found

        found = until("both records are there", records)
        for name in (replica_id, f"{replica_id}-server"):
            assert {**marks, "template": "mock", "node": "n1"}.items() <= found[name].items()
        shown = ask(f"{registry.url}/api/v1/replicas/{replica_id}")["info"]
        assert (shown["model_name"], shown["request_id"]) == ("served", "asked-1")
        assert marks.items() <= shown["metadata"].items()
        ask(f"{registry.url}/api/v1/replicas/{replica_id}/stop", {})

        def stopped() -> Any:
            info = (ask(f"{registry.url}/api/v1/replicas/{replica_id}") or {}).get("info", {})
            return info.get("status") == "stopped" and info

        assert marks.items() <= until("its end is told", stopped)["metadata"].items()


def test_an_agent_whose_templates_dir_is_no_folder_says_so_and_does_not_start(tmp_path: Path) -> None:
    with agent(tmp_path, settings={"templates_dir": str(tmp_path / "nowhere")}) as node:
        process = node.spawn()
        assert process.wait(30) == 78
        assert "templates_dir" in node.log


def fire_and_forget(node: AgentProcess, body: dict[str, Any]) -> None:
    """Send a create call and do not wait for its answer."""

    raw = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", node.port)) as connection:
        connection.sendall(
            b"POST /api/v1/replicas HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(raw)}\r\n\r\n".encode()
            + raw
        )
