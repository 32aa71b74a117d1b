"""Deployments in real processes: a thousand requests for a cold model."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bench.replay.figures import quantile
from bench.router.cold import ask
from bench.router.machine import BenchError, raise_file_limit
from bench.router.peers import build_programs
from tests.e2e.fleet import Fleet, fleet_in, tell

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
MANY = 1000
START_S = 3
SLOW_BACKEND = """\
description = "The bench's backend, which costs next to nothing, after a while"

[backend]
type = "command"
command = "sh"
args = ["-c", "sleep {start_s}; exec {program} $0", "{{port}}"]
"""


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_in(tmp_path) as made:
        yield made


async def test_a_thousand_requests_to_a_cold_model_are_one_start_and_none_is_lost(fleet: Fleet) -> None:
    raise_file_limit()
    templates = fleet.folder / "templates"
    templates.mkdir()
    try:
        _, backend = build_programs(fleet.folder)
    except BenchError as error:
        pytest.skip(str(error))
    (templates / "slow.toml").write_text(SLOW_BACKEND.format(start_s=START_S, program=backend))
    fleet.add_registry()
    fleet.add_agent("n1", templates_dir=str(templates))
    fleet.add_router("router", "--workers", "2")
    await fleet.apply("d", template="slow", model="m", replicas={"min": 0, "max": 1})
    await fleet.listed("m", "cold")
    askers = await ask(int(urlsplit(fleet.router).port or 0), MANY, spread_s=1)

    async def all_held() -> bool:
        return bool((await fleet.info("d")).get("waiting") == MANY)

    await fleet.until("all are held", all_held)
    async with asyncio.timeout(120):
        for asker in askers:
            await asker.over.wait()
    for asker in askers:
        asker.close()
    assert all(asker.first_at for asker in askers), "requests are lost"
    (replica,) = fleet.root("n1").glob("*/worker_stdout.log")
    status, answer = await fleet.call("GET", f"/api/v1/replicas/{replica.parent.name}")
    assert status == 200, answer
    ready_at = datetime.fromisoformat(answer["info"]["ready_at"]).timestamp() - (time.time() - time.monotonic())
    first_s = sorted(asker.first_at - ready_at for asker in askers)
    figures = {"first": first_s[0], "p50": quantile(first_s, 0.5), "p99": quantile(first_s, 0.99), "last": first_s[-1]}
    # Not judged here: how soon depends on what else the machine does. docs/performance.md has figures.
    tell(first_token_after_ready_ms={name: round(value * 1e3) for name, value in figures.items()})
