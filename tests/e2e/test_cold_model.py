"""A model that goes cold and is woken: registry, agent, babysitter, mock server and router as processes, asked by OpenAI's client."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from tests.ports import free_port
from tests.router.test_process import process

pytestmark = [pytest.mark.e2e, pytest.mark.world]  # test_deployments_on_demand.py runs each time
ROOT = Path(__file__).resolve().parents[2]
MODEL = "org/chat"
SPEC = {
    "model": MODEL,
    "template": "mock",
    "parameters": {"model": MODEL, "start_delay_s": 2},
    "replicas": {"min": 0, "max": 1},
    "idle_s": 5,
    "dwell_s": 0,
}
MANY = 100


class Fleet:
    """Where everything is."""

    def __init__(self, folder: Path, http: aiohttp.ClientSession) -> None:
        self.folder, self.http = folder, http
        self.registry_port, self.router_port = free_port(), free_port()

    @property
    def registry(self) -> str:
        return f"http://127.0.0.1:{self.registry_port}"

    @property
    def router(self) -> str:
        return f"http://127.0.0.1:{self.router_port}"

    async def get(self, url: str) -> Any:
        async with self.http.get(url) as answer:
            return json.loads(await answer.read())

    async def until(self, holds: Callable[[], Awaitable[bool]], wait_s: float = 60) -> None:
        async with asyncio.timeout(wait_s):
            while True:
                try:
                    if await holds():
                        return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)

    async def status(self) -> str | None:
        """What the router says of the model: None: it is not listed, or warm as `warm`."""
        listed = (await self.get(f"{self.router}/v1/models"))["data"]
        return next((str(one.get("status", "warm")) for one in listed if one["id"] == MODEL), None)

    async def is_now(self, status: str) -> bool:
        return await self.status() == status

    def starts(self) -> int:
        """Replicas that were ever made."""
        return (self.folder / "babysitter.agent.log").read_text().count('"babysitter.started"')


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
        fleet = Fleet(tmp_path, http)
        work, port = tmp_path / "work", str(fleet.registry_port)
        agent: tuple[str, ...] = (
            "--port",
            "0",
            "--local-workdir-root",
            str(work),
            "--registry-url",
            fleet.registry,
            "--node",
            "n1",
        )
        agent += ("--templates-dir", str(ROOT / "config" / "templates"), "--cleanup-on-shutdown")
        agent += ("--heartbeat-interval", "0.5", "--first-port", str(20000 + os.getpid() % 1000 * 10))
        router = ("--router-port", str(fleet.router_port), "--registry-url", fleet.registry, "--workers", "2")
        async with (
            process("registry", "--port", port, cwd=tmp_path),
            process("babysitter.agent", *agent, cwd=tmp_path),
            process("router", *router, cwd=tmp_path),
        ):
            yield fleet


async def stream(client: openai.AsyncOpenAI) -> tuple[float, str]:
    """When the first token came, and all of them."""
    first_at, words = 0.0, []
    async for chunk in await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hi"}], stream=True, max_tokens=4
    ):
        first_at = first_at or time.monotonic()
        words += [one.delta.content or "" for one in chunk.choices]
    return first_at, "".join(words)


async def test_model_goes_cold_is_woken_once_by_official_clients_and_goes_cold_again(fleet: Fleet) -> None:
    async def is_made() -> bool:
        async with fleet.http.put(f"{fleet.registry}/api/v1/deployments/chat", json=SPEC) as answer:
            body = await answer.json()
            return answer.status in (200, 201) and not body["warnings"]

    await fleet.until(is_made)
    await fleet.until(lambda: fleet.is_now("cold"))
    async with openai.AsyncOpenAI(base_url=f"{fleet.router}/v1", api_key="-", max_retries=0) as client:
        for starts in (1, 2):
            answers = await asyncio.gather(*(stream(client) for _ in range(MANY)))
            assert all(words for _, words in answers)
            assert await fleet.is_now("warm")
            assert fleet.starts() == starts
            await fleet.until(lambda: fleet.is_now("cold"))
        asked = await client.chat.completions.with_raw_response.create(model=MODEL, messages=[], max_tokens=4)
        assert asked.parse().choices[0].message.content
        assert int(asked.headers["x-queue-ms"]) > 1000
