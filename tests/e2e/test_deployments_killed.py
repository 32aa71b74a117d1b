"""kill -9 of each part in every phase of a cold model's start: one server at a time, nothing left over, every request answered.

| phase | the kill comes when |
|---|---|
| planned | the start stands in the store, and the agent, which is held by SIGSTOP, has not answered the call |
| creating | the replica's folder is there |
| starting | its babysitter runs |
| loading | its server runs and does not answer |
| ready | the requests that waited are in it |
"""

import asyncio
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from babysitter.agent import processes
from tests.e2e.fleet import DEPLOYMENTS, Fleet, Server, fleet_in, tell
from tests.registry.etcd import require_etcd

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]  # seconds where nothing else runs
MODEL = "cold"
CLIENTS = 6
TIMES = int(os.environ.get("KILLED_TIMES", "20"))
PHASES = ("planned", "creating", "starting", "loading", "ready")
SPEC = {
    "model": MODEL,
    "parameters": {"model": MODEL, "start_delay_s": 1, "ttft_s": 0.5, "token_delay_s": 0.05},
    "accelerators": 1,
    "replicas": {"min": 0, "max": 1},
    "dwell_s": 0,
}


class Watcher(threading.Thread):
    """Looks all the time; `worst`: the most servers that were there at one moment; `replicas`: folders that the agent made."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(daemon=True)
        self._look, self._root, self._over = fleet.servers.now, fleet.root("n1"), threading.Event()
        self.worst: list[Server] = []
        self.ever: set[tuple[int, int]] = set()
        self.replicas: set[str] = set()

    def run(self) -> None:
        while not self._over.wait(0.05):
            now = self._look()
            self.replicas |= replicas(self._root)
            self.ever.update((one.pid, one.ticks) for one in now)
            if len(now) > len(self.worst):
                self.worst = now

    def end(self) -> None:
        self._over.set()
        self.join()


@dataclass
class Outcomes:
    """What became of requests: `answered`, `told` why not, `cut`; `refused`: nobody listened."""

    counts: Counter[str] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)

    def take(self, kind: str, said: str = "") -> None:
        self.counts[kind] += 1
        if said:
            self.odd.append(f"{kind}: {said}")


async def ask(fleet: Fleet, outcomes: Outcomes, *, stream: bool) -> None:
    """One client, which asks again until it is answered."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": stream, "max_tokens": 4}
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            async with fleet.http.post(f"{fleet.router}/v1/chat/completions", json=body) as answer:
                status, said = answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            refused = isinstance(error, aiohttp.ClientConnectorError)  # it was never sent
            outcomes.take("refused" if refused else "cut", repr(error))
            await asyncio.sleep(0.2)
            continue
        whole = said.rstrip().endswith(b"data: [DONE]") if stream else b'"choices"' in said
        if status == 200 and whole and b'"error"' not in said:
            outcomes.take("answered")
            return
        # A refusal, or a stream's last event, is an object with a code and words.
        events = [line.removeprefix(b"data: ") for line in said.splitlines() if b'"error"' in line]
        why = json.loads(events[-1])["error"] if events else None
        outcomes.take("told" if why and why.get("code") and why.get("message") else "cut", f"{status} {said[-300:]!r}")
        await asyncio.sleep(0.2)
    outcomes.take("lost")


def replicas(root: Path) -> set[str]:
    """Their folders; those that are being made or removed begin with a dot."""
    return {entry.name for entry in root.iterdir() if entry.is_dir()} - {"state"}


class Start:
    """One start of the model, looked at from outside until it is in a phase."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.root = fleet.root("n1")
        self.before = replicas(self.root)

    async def reach(self, phase: str) -> None:
        deadline = time.monotonic() + 60
        while not await self.is_in(phase):
            assert time.monotonic() < deadline, f"never {phase}{self.fleet.logs()}"
            await asyncio.sleep(0.005)

    async def is_in(self, phase: str) -> bool:
        match phase:
            case "planned":
                with suppress(aiohttp.ClientError):
                    return any(not one["leaving"] for one in (await self.fleet.info("d")).get("replicas", ()))
                return False
            case "creating":
                return bool(replicas(self.root) - self.before)
            case "starting":
                return bool(processes.scan(self.root))
            case "loading":
                return bool(self.fleet.servers.now())
            case _:
                return any([await self.in_flight(one) for one in self.fleet.servers.now()])

    async def in_flight(self, server: Server) -> bool:
        with suppress(aiohttp.ClientError):
            async with self.fleet.http.get(f"http://127.0.0.1:{server.port}/mock/state") as answer:
                return bool((await answer.json())["in_flight"])
        return False


def leader(fleet: Fleet) -> str:
    """The registry that said last that it leads."""
    said = {}
    for name in fleet.processes:
        if name.startswith("registry"):
            lines = [
                json.loads(line) for line in (fleet.folder / f"{name}.log").read_text().splitlines() if line[:1] == "{"
            ]
            turns = [line for line in lines if line["event"] == "deployment.leads"]
            if turns and turns[-1]["on"]:
                said[turns[-1]["timestamp"]] = name
    return said[max(said)]


async def kill(fleet: Fleet, victim: str) -> None:
    """SIGKILL it, and start it again as a supervisor would."""
    if victim == "babysitter":
        (found,) = processes.scan(fleet.root("n1")).values()
        os.kill(found[0].process.pid, signal.SIGKILL)
        return
    name = {"agent": "agent-n1", "leader": leader(fleet)}.get(victim, victim)
    children = psutil.Process(fleet.processes[name].pid).children(recursive=True) if victim == "router" else []
    fleet.kill(name)
    await asyncio.sleep(0.1)
    fleet.start(name)
    _, left = await asyncio.to_thread(psutil.wait_procs, children, 30)
    assert not left, "workers outlive their master"


async def round_of(fleet: Fleet, victim: str, phase: str) -> Outcomes:
    """One start with a kill in it; the model is cold before and after."""
    await fleet.listed(MODEL, "cold")
    assert not fleet.orphans()
    start, outcomes, agent = Start(fleet), Outcomes(), fleet.processes["agent-n1"]
    watcher = Watcher(fleet)
    clients: list[asyncio.Future[None]] = []
    watcher.start()
    try:
        if phase == "planned":
            agent.send_signal(signal.SIGSTOP)
        clients += [asyncio.ensure_future(ask(fleet, outcomes, stream=n % 2 == 0)) for n in range(CLIENTS)]
        await start.reach(phase)
        await kill(fleet, victim)
        if phase == "planned":
            agent.send_signal(signal.SIGCONT)  # (nothing, to one that was killed)
        await asyncio.gather(*clients)
        await fleet.reached("d", "ready", 1)
    finally:
        watcher.end()
        for client in clients:
            client.cancel()
    await go_cold(fleet)
    made = {name for name in watcher.replicas - start.before if not name.startswith(".")}
    assert outcomes.counts["answered"] == CLIENTS, outcomes
    assert len(watcher.worst) == 1, f"two servers at one moment: {watcher.worst}"
    assert len(made) == 1, f"replicas made: {made}{fleet.logs()}"
    assert len(watcher.ever) == 1, f"servers started: {watcher.ever}"
    if victim != "router":
        assert not outcomes.counts["cut"] + outcomes.counts["refused"], outcomes
    return outcomes


async def go_cold(fleet: Fleet) -> None:
    """Put it to sleep, and see that nothing of it is left."""

    async def slept() -> bool:
        return (await fleet.call("POST", f"{DEPLOYMENTS}/d/sleep"))[0] == 200

    await fleet.until("it may sleep", slept)
    await fleet.reached("d", "cold")

    async def nothing_left() -> bool:
        return not fleet.orphans()

    try:
        await fleet.until("nothing is left", nothing_left, 30)
    except AssertionError as error:
        raise AssertionError(f"orphans: {fleet.orphans()}\n{error}") from None


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Callable[[str], Any]]:
    """Makes the fleet for a victim, with the model cold."""
    async with AsyncExitStack() as stack:

        async def make(victim: str) -> Fleet:
            fleet = await stack.enter_async_context(fleet_in(tmp_path))
            if victim == "leader":
                require_etcd()
                store = fleet.add_etcd()
                for number in range(3):
                    fleet.add_registry(f"registry{number}", "--store", store)
            else:
                fleet.add_registry()
            fleet.add_agent("n1", 1)
            fleet.add_router("router", "--workers", "1")
            await fleet.apply("d", **SPEC)
            return fleet

        yield make


async def test_kill_9_in_a_start_of_a_cold_model_B1_C17_D17_E3(made: Callable[[str], Any]) -> None:
    fleet = await made("registry")
    await round_of(fleet, "registry", "creating")
    await round_of(fleet, "babysitter", "loading")


@pytest.mark.world
async def test_kill_9_of_the_leader_of_three_registries_in_a_start_of_a_cold_model_C17(
    made: Callable[[str], Any],
) -> None:
    await round_of(await made("leader"), "leader", "planned")


@pytest.mark.world
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("victim", "phase"),
    [*product(("router", "registry", "leader", "agent"), PHASES), *product(("babysitter",), PHASES[2:])],
)
async def test_kill_9_in_every_phase_of_a_start_many_times_C17(
    made: Callable[[str], Any], victim: str, phase: str
) -> None:
    fleet, counts = await made(victim), Counter[str]()
    for _ in range(TIMES):
        counts += (await round_of(fleet, victim, phase)).counts
    tell(victim=victim, phase=phase, kills=TIMES, requests=counts)
