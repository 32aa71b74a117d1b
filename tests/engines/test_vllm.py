"""A real vLLM behind a babysitter and a router: its many processes, its engine's death, and an engine that hangs."""

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil
import pytest

from babysitter import identity
from router.outlier import TOLD, Reason
from router.policy.usage import usage_of
from tests.babysitter.conftest import Registry, registry, router_port
from tests.babysitter.real import Node, ask, running
from tests.engines import llama_cpp, vllm
from tests.engines.harness import START_S, until

__all__ = ["registry", "router_port"]  # fixtures
pytestmark = [pytest.mark.engines, pytest.mark.timeout(1800)]


def post(node: Node, path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"http://127.0.0.1:{node.port}{path}", json={"model": "tiny", **body}, timeout=20)
    return answer.raise_for_status().json()


def generate(node: Node) -> None:
    said = post(node, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4})
    assert said["usage"]["completion_tokens"] > 0


def engine_core(pids: list[int]) -> int:
    """vLLM names its engine's process so."""
    return next(pid for pid in pids if "EngineCore" in " ".join(psutil.Process(pid).cmdline()))


def shared_memory(pids: list[int]) -> set[str]:
    """Files of /dev/shm that these processes have mapped."""
    found = set()
    for pid in pids:
        found |= set(re.findall(r" (/dev/shm/\S+)$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE))
    return found


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if identity.start_ticks(pid) is not None]


def test_vllm_of_many_processes_is_adopted_restarted_and_ended_whole_W25_W26_W50_W51(tmp_path: Path) -> None:
    assert "SPT_NOENV" not in os.environ
    with running(tmp_path) as node:
        node.backend = vllm.backend(node.port, "--api-server-count", "2")
        first = node.start()
        pid = node.ready(START_S)
        generate(node)
        family = node.processes()
        assert len(family) >= 4  # the server, two API servers, the engine
        first.kill()
        first.wait()
        second = node.start()
        assert node.ready() == pid
        assert set(family) <= set(node.processes())

        os.kill(engine_core(family), signal.SIGKILL)
        until("its engine's end is noticed", lambda: node.report()["restart_count"] == 1)
        until("all of it ended", lambda: not alive(family))
        pid = node.ready(START_S)
        generate(node)

        family = node.processes()
        memory = shared_memory(family)
        assert memory
        shim = psutil.Process(pid).ppid()
        for process in (shim, pid):
            os.kill(process, signal.SIGSTOP)
        for process in (shim, pid):
            os.kill(process, signal.SIGKILL)
        until("all of it ended", lambda: not alive(family))
        assert [path for path in memory if Path(path).exists()] == []
        until("started again", node.processes)
        assert ask(f"http://127.0.0.1:{node.port + 1}/stop", {}) is not None
        assert second.wait(60) == 0
        assert node.processes() == []


PROMPT = "the quick brown fox jumps over the lazy dog " * 20
SAID = [{"role": "user", "content": PROMPT}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": SAID, "max_tokens": 4},
    "/v1/completions": {"prompt": PROMPT, "max_tokens": 4},
    "/v1/messages": {"messages": SAID, "max_tokens": 4},
    "/v1/responses": {"input": PROMPT, "max_output_tokens": 4},
}
STOPPED_S, EVERY_S = 30.0, 0.25
MOST = 12
"""Of 120 requests, those that may go to an engine which hangs."""


async def test_vllm_is_read_rightly_and_set_aside_and_restarted_when_its_engine_hangs_W45_W46(
    tmp_path: Path, registry: Registry, router_port: int
) -> None:
    """Beside a llama.cpp, by the default policy and the default probes: 120 requests in 30 s, half of them streams."""
    router, top = f"http://127.0.0.1:{router_port}", {"registry_url": registry.url}
    places = [tmp_path / "v", tmp_path / "l"]
    for place in places:
        place.mkdir()
    defaults = {"start_interval_s": 1, "interval_s": 5, "timeout_s": 2}
    with (
        running(places[0], name="v", top=top, probes=defaults) as hung,
        running(places[1], name="l", top=top) as other,
    ):
        hung.backend = vllm.backend(hung.port, "--enable-prompt-tokens-details")
        hung.start()
        pid = await asyncio.to_thread(hung.ready, START_S)
        async with aiohttp.ClientSession(router, timeout=aiohttp.ClientTimeout(total=600)) as http:
            await until_routed(http, "1/1")
            await check_usage(http)
            await warm(http)  # its cache holds all conversations, and each worker of the router knows its pace
            other.backend = llama_cpp.backend(other.port, n_ctx=16384, n_parallel=4)
            other.start()
            await asyncio.to_thread(other.ready)
            await until_routed(http, "2/2")
            await warm(http)

            os.kill(engine_core(hung.processes()), signal.SIGSTOP)
            asked, told = [], ""
            for number in range(int(STOPPED_S / EVERY_S)):
                asked.append(asyncio.ensure_future(talk(http, number)))
                await asyncio.sleep(EVERY_S)
                service = await service_of(http, hung)
                told = told or service.get("set_aside", "")
            print(f"{service['in_flight']} of {len(asked)} wait; {told}")  # noqa: T201 - the figure of this row
            assert hung.server("/v1/models")["data"]  # it looks well
            assert told == TOLD[Reason.SILENT]
            assert service["in_flight"] <= MOST
            await asyncio.to_thread(until, "restarted", lambda: hung.report()["restart_count"] == 1, 200)
            assert identity.start_ticks(pid) is None
            assert "no token within" in hung.log()
            assert (await asyncio.gather(*asked)).count(200) >= len(asked) - MOST


async def until_routed(http: aiohttp.ClientSession, healthy: str) -> None:
    """Until the master says so and both of its workers know it."""
    async with asyncio.timeout(60):
        while await services(http) != healthy or await turns(http, 0) != {200}:
            await asyncio.sleep(0.2)


async def services(http: aiohttp.ClientSession) -> str:
    async with http.get("/health") as answer:
        return str((await answer.json())["healthy_services"])


async def warm(http: aiohttp.ClientSession) -> None:
    for turn in range(10):
        assert await turns(http, turn) == {200}


async def turns(http: aiohttp.ClientSession, turn: int) -> set[int]:
    """Ten at once; their statuses."""
    return set(await asyncio.gather(*(talk(http, 10 * turn + number) for number in range(10))))


async def check_usage(http: aiohttp.ClientSession) -> None:
    for path, body in ASKED.items():
        for stream in (False, True):
            options = {"stream_options": {"include_usage": True}} if stream and "completions" in path else {}
            for _ in range(2):
                async with http.post(path, json={"model": "tiny", "stream": stream, **options, **body}) as answer:
                    raw = await answer.read()
            first, last = usage_of(raw.partition(b"\n\n")[0]), usage_of(raw)
            assert last is not None, (path, raw[-500:])
            if first is not None:
                last.add_first(first)
            assert 0.8 < (last.cached_share() or 0) <= 1.0, (path, raw[-500:])
            assert last.written == 4


async def talk(http: aiohttp.ClientSession, number: int) -> int:
    """One turn of one of eight conversations; its status."""
    said = [{"role": "user", "content": f"conversation {number % 8} " * 20 + f"turn {number}"}]
    body = {"model": "tiny", "stream": number % 2 == 0, "max_tokens": 12, "messages": said, "user": f"u{number % 8}"}
    async with http.post("/v1/chat/completions", json=body) as answer:
        raw = await answer.read()
        return 502 if b'"error"' in raw and answer.status == 200 else answer.status


async def service_of(http: aiohttp.ClientSession, node: Node) -> dict[str, Any]:
    async with http.get("/services") as answer:
        services = (await answer.json())["services"]
    return dict(next(one for one in services if one["port"] == node.port))
