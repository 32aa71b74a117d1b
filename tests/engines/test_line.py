"""Prompts that wait in the router before two busy real engines (llama.cpp): all are answered, and a short one does not wait for all."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.babysitter.real import ask as ask_json
from tests.babysitter.real import until
from tests.engines.harness import Fleet, engine_node, fleet

pytestmark = [pytest.mark.engines, pytest.mark.timeout(300)]
MODEL = "llama-3.1-8b"
"""As config/examples/llama-cpp.toml names it."""
LONG = 60
AHEAD_S = 0.01
"""A tiny model reads a long prompt in a fraction of a second."""


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("line")
    with ExitStack() as stack:
        where = stack.enter_context(fleet(folder, "--workers", "1", "--read-ahead-s", str(AHEAD_S)))
        for name in ("one", "other"):
            node = stack.enter_context(engine_node("llama_cpp", folder / name, registry=where.registry.url, name=name))
            node.start()
            node.ready()
        until("both are routed", lambda: (ask_json(f"{where.url}/health") or {}).get("healthy_services") == "2/2")
        yield where


async def ask(client: httpx.AsyncClient, url: str, content: str) -> tuple[float, httpx.Response]:
    """When its first byte came, and the whole answer."""
    body = {
        "model": MODEL,
        "stream": True,
        "max_tokens": 4,
        "messages": [{"role": "user", "content": content}],
    }
    async with client.stream("POST", url, json=body) as answer:
        first_at = 0.0
        async for _ in answer.aiter_bytes():
            first_at = first_at or time.monotonic()
        return first_at, answer


async def test_prompts_wait_for_their_turn_and_the_short_one_overtakes(busy: Fleet) -> None:
    url = f"{busy.url}/v1/chat/completions"
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=100)) as client:
        for number in range(8):  # teaches the router their pace
            _, answer = await ask(client, url, f"{number} what comes first " * 60)
            assert answer.status_code == 200
        long = [
            asyncio.create_task(ask(client, url, f"{number} a long story about it " * 50)) for number in range(LONG)
        ]
        await asyncio.sleep(0.3)
        short = asyncio.create_task(ask(client, url, "short"))
        told = await asyncio.gather(*long)
        short_at, answer = await short
    assert {one.status_code for _, one in told} == {answer.status_code} == {200}
    waited = [one for _, one in told if "x-queue-ms" in one.headers]
    assert len(waited) > LONG / 4, "an engine had one after the other"
    assert sum(at > short_at for at, _ in told) > LONG / 4, "it did not wait for all of them"
