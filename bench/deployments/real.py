"""Many models on few accelerators in real processes: registry, agent, babysitters, mock servers, router; seen from outside.

Zipf traffic as in zipf.py, on a clock that does not jump: starts of 3 to 12 s, a dwell of 15 s, answers of 2 s, half of them
streams. What the fleet says of itself is taken for ETAs only; who has which accelerator stands in /proc.
"""

import asyncio
import contextlib
import json
import random
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from bench.replay.figures import quantile
from tests.e2e.fleet import DEPLOYMENTS, Fleet, Servers, fleet_in

DWELL_S, IDLE_S, TOKENS, TOKEN_S = 15.0, 120.0, 20, 0.1
WATCH_S, ASK_S, PATIENCE_S = 0.1, 0.5, 300.0
LEARNED = 3
"""From the start after these on, an ETA is judged."""
EVICTED = "needs its place"
"""Of such a reason to leave."""
CODES = {"model_starting", "model_unavailable", "queue_full"}


@dataclass(slots=True)
class Request:
    """One request: `answered`, `told` why not, or `lost`."""

    model: str
    asked_at: float
    first_at: float = 0.0
    ended_at: float = 0.0
    outcome: str = "lost"
    said: str = ""


class Watcher(threading.Thread):
    """Looks at the servers' environments; `twice`: accelerators that two had at one moment."""

    def __init__(self, servers: Servers) -> None:
        super().__init__(daemon=True)
        self._servers, self.over = servers, threading.Event()
        self.twice: list[str] = []
        self.looks = self.most = 0
        self.ever: set[tuple[int, int]] = set()

    def run(self) -> None:
        """Until `over`."""
        while not self.over.wait(WATCH_S):
            now = self._servers.now()
            taken = Counter((one.node, index) for one in now for index in one.accelerators)
            self.twice += [f"{key}: {now}" for key, count in taken.items() if count > 1]
            self.twice += [f"no accelerator: {one}" for one in now if not one.accelerators]
            self.looks, self.most = self.looks + 1, max(self.most, len(now))
            self.ever.update((one.pid, one.ticks) for one in now)


@dataclass
class Run:
    """What was seen."""

    requests: list[Request] = field(default_factory=list)
    told_etas: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By request id of a replica: when an ETA was told, and what."""


async def ask(fleet: Fleet, one: Request, *, stream: bool) -> None:
    """Ask once, and see what comes of it."""
    body = {"model": one.model, "messages": [{"role": "user", "content": "hi"}], "stream": stream, "max_tokens": TOKENS}
    said = b""
    try:
        url, patience = f"{fleet.router}/v1/chat/completions", aiohttp.ClientTimeout(total=PATIENCE_S)
        async with fleet.http.post(url, json=body, timeout=patience) as answer:
            async for piece in answer.content.iter_any():
                said += piece
                if not one.first_at and (b"data:" in said or not stream):
                    one.first_at = time.time()
            status, retry_after = answer.status, answer.headers.get("Retry-After")
    except (aiohttp.ClientError, TimeoutError) as error:
        one.said = repr(error)
        return
    one.ended_at, one.said = time.time(), said[-300:].decode(errors="replace")
    whole = said.rstrip().endswith(b"data: [DONE]") if stream else b'"choices"' in said
    if status == 200 and whole and b'"error"' not in said:
        one.outcome = "answered"
        return
    with contextlib.suppress(ValueError, KeyError, IndexError):
        lines = [line.removeprefix(b"data: ") for line in said.splitlines() if b'"error"' in line]
        error = json.loads(lines[-1])["error"]
        if error["code"] in CODES and error["message"] and (retry_after or stream):
            one.outcome, one.said = "told", error["code"]


async def listen(fleet: Fleet, run: Run) -> None:
    """Take down each ETA that is told of a start."""
    while True:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            _, listed = await fleet.call("GET", DEPLOYMENTS)
            for one in listed["deployments"]:
                starting = [it for it in one["replicas"] if it["status"] != "ready" and not it["leaving"]]
                if one["phase"] == "starting" and one.get("eta_s") is not None and len(starting) == 1:
                    run.told_etas.setdefault(starting[0]["request_id"], []).append((time.time(), one["eta_s"]))
        await asyncio.sleep(ASK_S)


async def traffic(fleet: Fleet, run: Run, *, seed: int, seconds: float, models: int, per_s: float) -> None:
    """Requests come at random, the model of rank N with a share of 1/N."""
    rng = random.Random(seed)  # noqa: S311 - seeded
    names, shares = [f"m{rank:02}" for rank in range(1, models + 1)], [1 / rank for rank in range(1, models + 1)]
    for name in names:
        delay_s = round(rng.uniform(3, 12), 1)
        parameters = {"model": name, "start_delay_s": delay_s, "token_delay_s": TOKEN_S}
        replicas = {"min": 0, "max": 1}
        await fleet.apply(
            name, parameters=parameters, accelerators=1, replicas=replicas, idle_s=IDLE_S, dwell_s=DWELL_S
        )
    await fleet.listed(names[-1], "cold")
    ends, asked = time.monotonic() + seconds, []
    while time.monotonic() < ends:
        await asyncio.sleep(rng.expovariate(per_s))
        run.requests.append(Request(rng.choices(names, shares)[0], time.time()))
        asked.append(asyncio.ensure_future(ask(fleet, run.requests[-1], stream=rng.random() < 0.5)))
    await asyncio.gather(*asked)


def events(fleet: Fleet, name: str) -> list[tuple[float, dict[str, Any]]]:
    """The registry's log events of that name."""
    lines = (fleet.folder / "registry.log").read_text().splitlines()
    found = [json.loads(line) for line in lines if f'"{name}"' in line]
    return [(datetime.fromisoformat(one["timestamp"]).timestamp(), one) for one in found]


def eta_errors(fleet: Fleet, run: Run) -> list[float]:
    """Of each start but the first of a model: how far the first ETA that was told was from what it took from there."""
    started = {one["request"]: one["deployment"] for _, one in events(fleet, "deployment.started")}
    ready = [(at, one["deployment"]) for at, one in events(fleet, "deployment.ready")]
    errors, seen = [], Counter[str]()
    for request_id, name in started.items():
        told = run.told_etas.get(request_id, [])
        seen[name] += 1
        ended = next((at for at, whose in ready if whose == name and told and at > told[0][0]), None)
        if seen[name] > LEARNED and told and ended is not None:
            eta_s, took_s = told[0][1], ended - told[0][0]
            errors.append(abs(eta_s - took_s) / took_s)
    return errors


def report(fleet: Fleet, run: Run, watcher: Watcher, *, seconds: float, accelerators: int) -> list[str]:
    """Print the figures; returns what was broken."""
    outcomes = Counter(one.outcome for one in run.requests)
    codes = Counter(one.said for one in run.requests if one.outcome == "told")
    waits = sorted(one.first_at - one.asked_at for one in run.requests if one.outcome == "answered")
    leaves = [(at, one) for at, one in events(fleet, "deployment.leaves")]
    evicted = [(at, one["deployment"]) for at, one in leaves if EVICTED in one["reason"]]
    ready = [(at, one["deployment"]) for at, one in events(fleet, "deployment.ready")]
    lives = [at - max(since for since, of in ready if of == name and since < at) for at, name in evicted]
    during = [
        name
        for at, name in evicted
        for one in run.requests
        if one.model == name and one.first_at and one.first_at < at < one.ended_at
    ]
    errors, limit = eta_errors(fleet, run), accelerators * seconds / DWELL_S
    print(f"requests {len(run.requests)}: {dict(outcomes)}, told {dict(codes)}")
    print(f"first token: p50 {quantile(waits, 0.5):.1f} s, p95 {quantile(waits, 0.95):.1f} s")
    print(f"starts {len(events(fleet, 'deployment.started'))}, servers seen {len(watcher.ever)}, ready {len(ready)}")
    print(f"left: {len(leaves)}, of them evicted {len(evicted)} (bound by the dwell: {limit:.0f})")
    print(f"shortest time from ready to eviction: {min(lives, default=0):.1f} s")
    print(f"evictions decided while a client was being answered: {len(during)}")
    print(f"accelerators given twice: {len(watcher.twice)} in {watcher.looks} looks, at most {watcher.most} servers")
    if errors:
        print(f"ETA, start {LEARNED + 1} of a model and later: median error {median(errors):.0%}, {len(errors)} starts")
    broken = [f"{one.outcome}: {one.said}" for one in run.requests if one.outcome == "lost"]
    broken += watcher.twice[:5]
    if len(evicted) > limit or min(lives, default=DWELL_S) < DWELL_S - 1:  # logged a round after the ready mark
        broken.append("the dwell is not kept")
    return broken


async def real(*, minutes: float, models: int, accelerators: int, per_s: float, seed: int) -> int:
    """Run it; the exit status."""
    run = Run()
    with tempfile.TemporaryDirectory(prefix="deployments-") as folder:
        async with fleet_in(Path(folder)) as fleet:
            fleet.add_registry()
            fleet.add_agent("n1", accelerators)
            fleet.add_router("router", "--workers", "1")
            watcher = Watcher(fleet.servers)
            watcher.start()
            listening = asyncio.ensure_future(listen(fleet, run))
            try:
                await traffic(fleet, run, seed=seed, seconds=minutes * 60, models=models, per_s=per_s)
            finally:
                listening.cancel()
                watcher.over.set()
                watcher.join()
            broken = report(fleet, run, watcher, seconds=minutes * 60, accelerators=accelerators)
    for line in broken:
        print(f"BROKEN {line}")
    return 1 if broken else 0
