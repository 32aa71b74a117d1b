"""A real nginx in front of the router, as it is set up everywhere: it names the client's address in X-Forwarded-For."""

import asyncio
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from tests.router.fakes import Call, Plane, plain
from tests.router.nginx import nginx

NAMES_THE_CLIENT = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
ANSWER = b'{"id":"1","object":"chat.completion","created":1,"model":"m","choices":[]}'
REQUESTS, REPLICAS = 80, 4


@pytest.mark.world
async def test_one_apps_requests_spread_behind_nginx_W12(plane: Plane, tmp_path: Path) -> None:
    arrived, all_there = 0, asyncio.Event()

    async def hold(call: Call) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == REQUESTS:
            all_there.set()
        await all_there.wait()
        await call.send(plain(ANSWER))

    replicas = [await plane.add(hold) for _ in range(REPLICAS)]
    plane.route(*replicas)
    async with (
        nginx(tmp_path, plane.port, location=NAMES_THE_CLIENT) as port,
        AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0) as app,
    ):
        asking = (
            app.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
            for _ in range(REQUESTS)
        )
        await asyncio.gather(*asking)
    assert all(call.header("x-forwarded-for") for replica in replicas for call in replica.calls)
    counts = sorted(len(replica.calls) for replica in replicas)
    assert sum(counts) == REQUESTS
    assert counts[-1] <= 1.25 * REQUESTS / REPLICAS + 1
    assert counts[0] >= REQUESTS / REPLICAS / 2
