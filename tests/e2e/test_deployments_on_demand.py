"""Deployments with nothing pretended but the model: registry, agent, babysitters, mock servers and a router, as processes."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.babysitter.agent.agent_process import AgentProcess, agent
from tests.ports import free_port
from tests.registry.processes import ROOT, environment, running

DEPLOYMENTS = "/api/v1/deployments"
WAIT_S = 40.0


@dataclass
class Fleet:
    """What runs."""

    folder: Path
    stack: ExitStack
    http: aiohttp.ClientSession
    agent: AgentProcess
    port: str
    router: str
    registry_process: subprocess.Popen[bytes]

    @property
    def registry(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        async with self.http.request(method, self.registry + path, json=body) as answer:
            return answer.status, await answer.json()

    async def reached(self, name: str, phase: str, ready: int | None = None) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_S
        info: dict[str, Any] = {}
        while time.monotonic() < deadline:
            try:
                _, info = await self.call("GET", f"{DEPLOYMENTS}/{name}")
                if info.get("phase") == phase and ready in (None, info["ready"]):
                    return info
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)
        raise AssertionError(f"{info}\n{self.agent.log[-3000:]}\n{(self.folder / 'registry.log').read_text()[-3000:]}")

    async def router_knows(self, model: str) -> None:
        """The router lists it, cold."""
        deadline = time.monotonic() + WAIT_S
        listed: Any = None
        while time.monotonic() < deadline:
            try:
                async with self.http.get(f"{self.router}/v1/models") as answer:
                    listed = await answer.json()
            except aiohttp.ClientError:
                pass
            if listed and any(it["id"] == model and it.get("status") == "cold" for it in listed["data"]):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{listed}\n{(self.folder / 'router.log').read_text()[-3000:]}")

    async def engine_sleeps(self, port: int) -> bool:
        """Its babysitter says so, once its requests are over; one that asked the server itself would keep it awake."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            async with self.http.get(f"http://127.0.0.1:{port + 1}/timeline") as answer:
                if (await answer.json())["state"] == "asleep":
                    return True
            await asyncio.sleep(0.1)
        return False

    def kill_registry(self) -> None:
        self.registry_process.kill()
        self.registry_process.wait()
        self.registry_process = self.stack.enter_context(running(self.folder, "--port", self.port))[0]

    def made(self) -> list[dict[str, Any]]:
        return [it for it in self.agent.infos().values() if not it["metadata"].get("deleted")]


def templates(folder: Path) -> Path:
    """The shipped ones, and `sleepy`: the mock with its calls for sleeping."""
    shutil.copytree(ROOT / "config" / "templates", folder)
    calls = {"sleep": "POST /sleep", "wake": "POST /wake_up", "state": "GET /is_sleeping"}
    words = "".join(f'{name} = "{call}"\n' for name, call in calls.items())
    (folder / "sleepy.toml").write_text((folder / "mock.toml").read_text() + f"\n[sleep]\n{words}")
    return folder


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    port, router_port = str(free_port()), free_port()
    with ExitStack() as stack:
        process, url = stack.enter_context(running(tmp_path, "--port", port))
        (tmp_path / "agent").mkdir()
        settings = {
            "registry_url": url,
            "heartbeat_interval": 0.5,
            "babysitter_command": [sys.executable, "-m", "babysitter"],
            "templates_dir": str(templates(tmp_path / "templates")),
            "accelerators": {"kind": "mock", "count": 2, "memory_mb": 1000, "variable": "CUDA_VISIBLE_DEVICES"},
        }
        made = stack.enter_context(agent(tmp_path / "agent", settings=settings))
        made.start()
        with (tmp_path / "router.log").open("ab") as log:
            router = subprocess.Popen(
                [sys.executable, "-m", "router", "--port", str(router_port), "--registry-url", url],
                cwd=tmp_path,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
            try:
                yield Fleet(tmp_path, stack, http, made, port, f"http://127.0.0.1:{router_port}", process)
            finally:
                os.kill(router.pid, signal.SIGTERM)
                router.wait(20)


def mock(**changes: Any) -> dict[str, Any]:
    return {"template": "mock", "parameters": {"model": "m", "start_delay_s": 1}, **changes}


async def test_a_cold_model_is_started_by_its_first_request_and_goes_again(fleet: Fleet) -> None:
    body = mock(model="cold-one", accelerators=1, replicas={"min": 0, "max": 1}, idle_s=3, dwell_s=1)
    status, answer = await fleet.call("PUT", f"{DEPLOYMENTS}/one", body)
    assert status == 201, answer
    await fleet.reached("one", "cold")
    await fleet.router_knows("cold-one")
    question = {"model": "cold-one", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}

    async def ask() -> tuple[int, Any]:
        async with fleet.http.post(f"{fleet.router}/v1/chat/completions", json=question) as got:
            return got.status, json.loads(await got.read())

    answers = await asyncio.gather(*(ask() for _ in range(30)))
    assert {status for status, _ in answers} == {200}, answers[0]
    assert len(fleet.made()) == 1
    (made,) = fleet.made()
    assert made["metadata"]["deployment"] == "one"
    info = await fleet.reached("one", "ready", 1)
    assert info["replicas"][0]["replica_id"] == made["replica_id"]
    await fleet.reached("one", "cold")
    assert fleet.made() == [] or all(it["status"] == "stopped" for it in fleet.made())


@pytest.mark.parametrize("delay_s", [0.05, 0.6])
async def test_kill_9_of_the_registry_in_the_middle_of_starts(fleet: Fleet, delay_s: float) -> None:
    status, answer = await fleet.call("PUT", f"{DEPLOYMENTS}/two", mock(replicas={"min": 2, "max": 2}))
    assert status == 201, answer
    await asyncio.sleep(delay_s)
    fleet.kill_registry()
    info = await fleet.reached("two", "ready", 2)
    assert {it["request_id"] for it in info["replicas"]} == {it["request_id"] for it in fleet.made()}
    assert len(fleet.made()) == 2
    status, _ = await fleet.call("DELETE", f"{DEPLOYMENTS}/two")
    assert status == 202
    await asyncio.sleep(delay_s)
    fleet.kill_registry()
    deadline = time.monotonic() + WAIT_S
    while (await fleet.call("GET", f"{DEPLOYMENTS}/two"))[0] != 404:
        assert time.monotonic() < deadline, fleet.made()
        await asyncio.sleep(0.1)
    assert all(it["status"] == "stopped" for it in fleet.made())


async def test_an_idle_model_sleeps_is_woken_by_a_request_and_stopped_later(fleet: Fleet) -> None:
    body = mock(template="sleepy", model="m", accelerators=1, replicas={"min": 0, "max": 1}, idle_s=2, dwell_s=1)
    status, answer = await fleet.call("PUT", f"{DEPLOYMENTS}/one", body)
    assert status == 201, answer
    await fleet.reached("one", "cold")
    await fleet.router_knows("m")
    question = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    servers = set()
    for _ in range(3):
        async with fleet.http.post(f"{fleet.router}/v1/chat/completions", json=question) as got:
            assert got.status == 200, await got.text()
        (made,) = fleet.made()
        servers.add((made["replica_id"], made["replica_pid"]))
        info = await fleet.reached("one", "asleep", 0)
        assert (info["wanted"], info["asleep"]) == (0, 1)
        nodes = (await fleet.call("GET", "/api/v1/nodes"))[1]["nodes"]
        held = [one["replicas"] for one in nodes[0]["accelerators"] if one["replicas"]]
        assert held == [[made["replica_id"]]], "it keeps its accelerator"
        assert await fleet.engine_sleeps(made["port"])
    assert len(servers) == 1, "it was woken, not started"
    await fleet.reached("one", "cold")
    assert all(it["status"] == "stopped" for it in fleet.made())
