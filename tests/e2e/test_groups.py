"""Groups in real processes: all or none, one record, a member's death, and nothing left (docs/adr/0015)."""

import asyncio
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleet import Fleet, fleet_in, tell

pytestmark = [pytest.mark.world, pytest.mark.timeout(1800)]
MODEL = "large"
FAST = {"template": "mock-group", "model": MODEL, "parameters": {"model": "large"}, "dwell_s": 0}
OUT_WITHIN_S = 2.0


def begin(fleet: Fleet, nodes: int) -> None:
    fleet.add_registry()
    for number in range(nodes):
        fleet.add_agent(f"n{number}")
    fleet.add_router("router", "--workers", "1")


def members(info: dict[str, Any]) -> list[dict[str, Any]]:
    [replica] = [one for one in info["replicas"] if not one["leaving"]]
    return list(replica["members"])


async def gone(fleet: Fleet) -> None:
    """Nothing of any start is left."""

    async def nothing() -> bool:
        return not fleet.orphans()

    await fleet.until("nothing is left", nothing)


async def ask(fleet: Fleet) -> int:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    async with fleet.http.post(f"{fleet.router}/v1/chat/completions", json=body) as answer:
        await answer.read()
        return answer.status


async def test_a_group_of_two_is_one_replica_and_leaves_nothing(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        begin(fleet, 2)
        await fleet.apply("d", **FAST)
        info = await fleet.reached("d", "ready", 1)
        assert [(one["rank"], one["status"]) for one in members(info)] == [(0, "ready"), (1, "ready")]
        assert {one["node"] for one in members(info)} == {"n0", "n1"}
        _, told = await fleet.call("GET", "/api/v1/replicas")
        marks = {(one["metadata"]["group"], one["metadata"]["rank"]) for one in told["replicas"]}
        assert marks == {(info["replicas"][0]["request_id"], rank) for rank in (0, 1)}
        await fleet.listed(MODEL, "ready")
        assert await ask(fleet) == 200
        _, services = await fleet.call("GET", "/services")
        servers = [one["name"] for one in services["services"] if one["name"].endswith("-server")]
        assert servers == [f"{members(info)[0]['replica_id']}-server"], "the leader's alone is a server for routers"
        await fleet.call("DELETE", "/api/v1/deployments/d")
        await gone(fleet)


# One hundred starts.

STARTS = int(os.environ.get("GROUP_STARTS", "100"))
AT_ONCE = 4


def check_ports(fleet: Fleet) -> None:
    """Every server that runs has a port of its own."""
    ports = [one.port for one in fleet.servers.now()]
    assert len(ports) == len(set(ports)), ports


async def start_once(fleet: Fleet, name: str, number: int) -> float:
    """One start of a group of four, which each fifth time is deleted in its middle; seconds until it was ready, else 0."""
    began = time.monotonic()
    await fleet.apply(name, **{**FAST, "model": name, "parameters": {"model": name}, "followers": 3})
    if number % 5 == 4:
        await asyncio.sleep(number % 20 / 5)
        took_s = 0.0
    else:
        info = await fleet.reached(name, "ready", 1)
        took_s = time.monotonic() - began
        assert [one["status"] for one in members(info)] == ["ready"] * 4
        assert len({one["node"] for one in members(info)}) == 4
        running = {one.model for one in fleet.servers.now() if one.model.startswith(name)}
        assert running == {name, *(f"{name}-{rank}" for rank in (1, 2, 3))}, "ready means that all members run"
        check_ports(fleet)
    await fleet.call("DELETE", f"/api/v1/deployments/{name}")

    async def removed() -> bool:
        return not await fleet.info(name) and not any(one.model.startswith(name) for one in fleet.servers.now())

    await fleet.until(f"{name} is gone", removed)
    return took_s


async def test_a_hundred_starts_of_four_members_are_whole_or_nothing(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        begin(fleet, 4)
        took_s: list[float] = []

        async def some(worker: int) -> None:
            for number in range(worker, STARTS, AT_ONCE):
                seconds = await start_once(fleet, f"g{worker}", number)
                took_s.append(seconds)

        await asyncio.gather(*(some(worker) for worker in range(AT_ONCE)))
        await gone(fleet)
        whole = sorted(one for one in took_s if one)
        tell(
            starts=len(took_s),
            whole=len(whole),
            median_s=whole[len(whole) // 2],
            longest_s=whole[-1],
            load=os.getloadavg(),
        )
        for number in range(4):
            assert not [one for one in fleet.root(f"n{number}").iterdir() if len(one.name) == 12], "a directory is left"


async def all_ready(fleet: Fleet, name: str) -> bool:
    info = await fleet.info(name)
    return {one["status"] for one in members(info)} == {"ready"}


@pytest.mark.parametrize("victim", ["registry", "agent-n1"])
async def test_who_makes_groups_is_killed_in_the_middle_of_a_start(tmp_path: Path, victim: str) -> None:
    """Some moments after the call, from before the first reservation until after the last member began."""
    async with fleet_in(tmp_path) as fleet:
        begin(fleet, 3)
        for number, after_s in enumerate((0.05, 0.3, 0.8, 2.0)):
            name = f"k{number}"
            await fleet.apply(name, **{**FAST, "model": name, "parameters": {"model": name}, "followers": 2})
            await asyncio.sleep(after_s)
            fleet.kill(victim)
            fleet.start(victim)
            await fleet.reached(name, "ready", 1)
            await fleet.until("all are heard of", partial(all_ready, fleet, name))
            running = sorted(one.model for one in fleet.servers.now())
            assert running == [name, f"{name}-1", f"{name}-2"], "each member runs once"
            await fleet.call("DELETE", f"/api/v1/deployments/{name}")
            await gone(fleet)
        tell(victim=victim, starts=4, load=os.getloadavg())


# Deaths.


class Asking:
    """Requests all the time: when each was sent, and when it was answered well."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.good: list[tuple[float, float]] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._one())
                await asyncio.sleep(0.05)

    async def _one(self) -> None:
        sent = time.monotonic()
        if await ask(self.fleet) == 200:
            self.good.append((sent, time.monotonic()))

    def last_before(self, killed: float, until: float) -> float:
        """The last request that the old group answered was sent so many seconds after its member's death."""
        return max((sent for sent, answered in self.good if answered < until), default=killed) - killed


def babysitter(fleet: Fleet, replica_id: str) -> int:
    lines = fleet.orphans().items()
    return next(pid for pid, line in lines if line.rstrip().endswith(replica_id) or f"/{replica_id} " in line)


def server(fleet: Fleet, model: str) -> int:
    return next(one.pid for one in fleet.servers.now() if one.model == model)


@pytest.mark.parametrize("victim", ["follower-server", "leader-server", "frozen-babysitter", "node"])
async def test_a_death_takes_the_record_out_in_two_seconds_and_all_start_again(tmp_path: Path, victim: str) -> None:
    async with fleet_in(tmp_path) as fleet:
        begin(fleet, 3)
        await fleet.apply("d", **{**FAST, "parameters": {"model": MODEL, "start_delay_s": 8}})
        before = members(await fleet.reached("d", "ready", 1))
        await fleet.listed(MODEL, "ready")
        asking = Asking(fleet)
        task = asyncio.create_task(asking.run())
        await asyncio.sleep(1)
        assert asking.good, "it is asked"
        pids = {
            "follower-server": lambda: [server(fleet, f"{MODEL}-1")],
            "leader-server": lambda: [server(fleet, MODEL)],
            "frozen-babysitter": lambda: [babysitter(fleet, before[1]["replica_id"])],
            "node": lambda: [
                fleet.processes[f"agent-{before[1]['node']}"].pid,
                babysitter(fleet, before[1]["replica_id"]),
                server(fleet, f"{MODEL}-1"),
            ],
        }[victim]()
        killed = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP if victim == "frozen-babysitter" else signal.SIGKILL)
        until = killed + 7

        async def again() -> list[dict[str, Any]] | None:
            info = await fleet.info("d")
            now = [one for one in info.get("replicas", []) if not one["leaving"] and one["status"] == "ready"]
            new = now and now[0]["members"][0]["replica_id"] != before[0]["replica_id"]
            return list(now[0]["members"]) if new else None

        after = await fleet.until("a new group is ready", again)
        task.cancel()
        await asyncio.wait([task])
        last_s = asking.last_before(killed, until)
        tell(
            victim=victim,
            last_routed_s=round(last_s, 2),
            again_s=round(time.monotonic() - killed, 1),
            load=os.getloadavg(),
        )
        assert last_s <= OUT_WITHIN_S
        assert not {one["replica_id"] for one in after} & {one["replica_id"] for one in before}
        await fleet.call("DELETE", "/api/v1/deployments/d")
        if victim == "frozen-babysitter":
            os.kill(pids[0], signal.SIGCONT)
        if victim != "node":
            await gone(fleet)
