"""Streams leave a replica that goes: by `svcctl drain --hand-over`, a rollout, a deployment that shrinks; all as processes (docs/streams.md)."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from babysitter.mock.answers import seeded_words, text_before
from bench import streams
from tests.e2e.fleet import Fleet, fleet_in, tell
from tests.registry.processes import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.world, pytest.mark.timeout(300)]
STREAMS = 20
TOKEN_S = 0.05
LENGTHS = range(320, 420)
"""Words of the answers that are asked for: 16 to 21 seconds."""


def body(said: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": said}]
    return {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "messages": messages}


def long_ones(count: int) -> list[dict[str, Any]]:
    """Requests whose answers are so long, by the mock's seeded text."""
    found: list[dict[str, Any]] = []
    number = 0
    while len(found) < count:
        one = body(f"request {number}")
        number += 1
        if len(seeded_words(text_before(one, chat=True), None)[0]) in LENGTHS:
            found.append(one)
    return found


class Clients:
    """So many streams, under way."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.asker = streams.Fleet(fleet.router, [], [], fleet.http)
        self._bodies = long_ones(STREAMS)
        self._tasks = [asyncio.ensure_future(self.asker.stream(one)) for one in self._bodies]

    async def by_replica(self) -> dict[str, int]:
        """Requests under way, of those that the router has."""
        async with self._fleet.http.get(f"{self._fleet.router}/services") as answer:
            return {one["name"]: one["in_flight"] for one in (await answer.json())["services"]}

    async def spread(self) -> None:
        """All have begun, at two replicas."""

        async def look() -> bool:
            found = await self.by_replica()
            return sum(found.values()) == STREAMS and min(found.values()) > STREAMS / 4

        await self._fleet.until("the streams have begun", look)
        await asyncio.sleep(0.5)

    async def none_has_ended(self) -> None:
        assert sum((await self.by_replica()).values()) == STREAMS

    async def are_whole(self, **figures: float) -> int:
        """Byte for byte; tells what was seen, and how often one moved."""
        seen = await asyncio.gather(*self._tasks)
        assert [one for one, asked in zip(seen, self._bodies, strict=True) if not one.is_whole(asked)] == []
        moves = [len(one.notes) for one in seen]
        assert sum(moves) > STREAMS / 4
        assert await self.asker.in_flight() == 0
        gaps = sorted(round(one.gap_s * 1e3) for one in seen if one.notes)
        rounded = {name: round(seconds, 2) for name, seconds in figures.items()}
        tell(**rounded, moves=sum(moves), longest_gap_ms=gaps[-1], load=round(os.getloadavg()[0], 1))
        return sum(moves)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """Two replicas of the deployment `d` on the two accelerators of one node, with seeded text, and a router that rescues."""
    templates = tmp_path / "templates"
    templates.mkdir()
    mock = (ROOT / "config" / "templates" / "mock.toml").read_text()
    seeded = mock.replace("args = [", 'args = [\n  "--seeded",') + '\n[metadata]\ncontinues = "chat"\n'
    (templates / "mock.toml").write_text(seeded)
    (tmp_path / "router.toml").write_text("[models.m]\nrescue = true\n")
    async with fleet_in(tmp_path) as made:
        made.add_registry("registry", "--hand-over")
        made.add_agent("n", 2, templates_dir=str(templates))
        made.add_router("router", "--config", str(tmp_path / "router.toml"), "--workers", "2")
        await apply(made, 0.05)
        await made.reached("d", "ready", 2)
        await made.listed("m", "ready")
        yield made


async def apply(fleet: Fleet, ttft_s: float) -> None:
    parameters = {"model": "m", "token_delay_s": TOKEN_S, "ttft_s": ttft_s}
    replicas = {"min": 2, "max": 2}
    await fleet.apply("d", model="m", parameters=parameters, accelerators=1, replicas=replicas, dwell_s=0)


async def svcctl(fleet: Fleet, *words: str) -> Any:
    where = ("--registry-url", fleet.registries[0], "--router-url", fleet.router, "--json")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ctl", *words, *where, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return json.loads(said)


async def test_a_drained_replica_is_empty_before_any_of_its_streams_ends_A23(fleet: Fleet) -> None:
    clients = Clients(fleet)
    await clients.spread()
    leaving = next(iter(await clients.by_replica()))
    began = time.monotonic()
    await svcctl(fleet, "drain", leaving, "--hand-over")
    told = time.monotonic()

    async def is_empty() -> bool:
        return not (await clients.by_replica())[leaving]

    await fleet.until("the replica is empty", is_empty)
    empty = time.monotonic()
    await clients.none_has_ended()
    moves = await clients.are_whole(svcctl_s=told - began, then_empty_after_s=empty - told)
    metrics = await clients.asker.metrics()
    assert (metrics["svc_router_hand_overs"], metrics["svc_router_rescues"]) == (moves, 0)


async def test_a_rollout_moves_the_streams_of_what_it_replaces_A23(fleet: Fleet) -> None:
    """Both accelerators are taken, so a replica leaves before its successor starts."""
    old = {one.pid for one in fleet.servers.now()}
    clients = Clients(fleet)
    await clients.spread()
    began = time.monotonic()
    await apply(fleet, 0.06)
    await first_left(fleet, old)
    seconds = time.monotonic() - began
    await clients.none_has_ended()
    await clients.are_whole(first_left_after_s=seconds)
    await fleet.reached("d", "ready", 2)
    assert not old & {one.pid for one in fleet.servers.now()}


async def test_a_deployment_that_shrinks_moves_the_streams_of_who_leaves_A23(fleet: Fleet) -> None:
    old = {one.pid for one in fleet.servers.now()}
    clients = Clients(fleet)
    await clients.spread()
    began = time.monotonic()
    await svcctl(fleet, "scale", "d", "1")
    await first_left(fleet, old)
    seconds = time.monotonic() - began
    await clients.none_has_ended()
    await clients.are_whole(left_after_s=seconds)


async def first_left(fleet: Fleet, old: set[int]) -> None:
    """One of two servers has ended."""

    async def look() -> bool:
        return len(old & {one.pid for one in fleet.servers.now()}) == 1

    await fleet.until("the first one has left", look)
