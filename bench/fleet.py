"""What many replicas cost registries, etcd and routers, and what breaks first.

    python bench/fleet.py [--sizes 10,100,1000,10000] [--seconds 30] [--json FILE]

Starts everything itself, on loopback: etcd, three registries over it, two real routers of one worker each, fourteen more
watches, and one process in which all replicas and nodes are (`bench/fleet/`). These replicas speak as in the field, each with two
records and a heartbeat of each in 5 s, by the babysitter's own reporter and messages; nodes speak as their agents, and obey
create calls. Registries and routers are as an operator starts them, but for the limits in `ROOM`.

At each size: all start; a steady time; churn (each replica once in an hour); a rolling deployment of a tenth of them by the
registry's own planner; a rack (a twenty-fifth of the nodes) loses its power. All the time some replica has something new to
tell, and it is taken when each of the sixteen watches has it. CPU is of the process, from /proc; everything shares the
machine, so the sum says whether the figures of latency are those of a machine that is too small.
"""

import argparse
import asyncio
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # as in `router.py` here

from bench.fleet.parts import Child, Part, start_parts  # noqa: E402
from bench.fleet.report import lines_of, price_of_heartbeats  # noqa: E402
from bench.router.machine import describe, load_average, raise_file_limit  # noqa: E402
from registry.core.pacing import next_step  # noqa: E402

WATCHES = 14
MODELS = 20
CHANGE_EVERY_S = 0.25
SAMPLE_EVERY_S = 0.2
SETTLE_S = 180.0
"""For whatever is to come about; what needs longer is said, with how far it came."""
ENDED_S = 600.0
"""For records of dead nodes: at heartbeats 160 s apart they have lost their leases after 191 s, and are removed after 478."""
ASK_EVERY_S = 0.5
"""How far it is: each answer takes a registry of 21,000 records milliseconds."""
CALL_S = 10.0
SETTLED = 1.1
"""Of the time between heartbeats that a fleet of the size is told: then each has had its turn, and comes as seldom as it is to come."""
MOST_ROLLED = 100

Work = Callable[[], Awaitable[dict[str, Any]]]


class TooSlow(Exception):
    """Something does not come about in time; the text says how far it came."""


class Fleet:
    """Everything that runs, and what was seen of it."""

    def __init__(
        self,
        parts: Mapping[str, Part],
        play: Child,
        watchers: Child,
        http: aiohttp.ClientSession,
        *,
        starts_per_s: float,
        beats_per_s: float,
    ) -> None:
        self.parts, self.play, self.watchers, self.http = parts, play, watchers, http
        self.starts_per_s, self.beats_per_s = starts_per_s, beats_per_s
        self.size = self.models = self.faults = 0
        self.killed = 0

    def registries(self) -> list[Part]:
        """The three."""
        return [part for name, part in self.parts.items() if name.startswith("registry")]

    def routers(self) -> list[Part]:
        """The real ones."""
        return [part for name, part in self.parts.items() if name.startswith("router")]

    async def get(self, part: Part, path: str) -> dict[str, Any]:
        """One answer of a part."""
        try:
            async with self.http.get(part.url + path) as answer:
                told: dict[str, Any] = await answer.json(content_type=None)
                return told
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TooSlow(f"{part.url}{path} does not answer: {error!r}") from error

    async def settled(self, member: str, count: int, *, at_most: bool = False, within_s: float = SETTLE_S) -> float:
        """Seconds until every registry counts so many."""
        began = time.monotonic()
        while time.monotonic() - began < within_s:
            counts = [(await self.get(one, "/health"))[member] for one in self.registries()]
            if all(it <= count if at_most else it >= count for it in counts):
                return time.monotonic() - began
            await asyncio.sleep(ASK_EVERY_S)
        raise TooSlow(f"after {within_s:g} s the registries count {counts}, not {count} ({member})")

    async def routed(self, count: int) -> float:
        """Seconds until every real router has so many replicas in its table."""
        began = time.monotonic()
        while time.monotonic() - began < SETTLE_S:
            counts = [(await self.get(one, "/health"))["healthy_services"] for one in self.routers()]
            if all(str(it).split("/", maxsplit=1)[0] == str(count) for it in counts):
                return time.monotonic() - began
            await asyncio.sleep(ASK_EVERY_S)
        raise TooSlow(f"after {SETTLE_S:g} s the routers count {counts}, not {count}")

    # What is measured all the time.

    async def call(self, url: str, body: dict[str, Any]) -> bool:
        """One small call; whether it was answered with 200."""
        try:
            async with self.http.post(url, json=body) as answer:
                await answer.read()
                return answer.status == HTTPStatus.OK
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def sample(self, kind: str, stop: asyncio.Event) -> list[float]:
        """Milliseconds of small calls, also of one that fails: a read of etcd, a request through a router."""
        took: list[float] = []
        while not stop.is_set():
            began = time.perf_counter()
            if kind == "etcd":
                body = {"key": "L2luZmVyZW5jZS1zdmMvdjEvbGVhZGVy"}  # /inference-svc/v1/leader
                await self.call(self.parts["etcd"].url + "/v3/kv/range", body)
            else:
                asked = {"model": f"model-{len(took) % self.models}", "messages": []}
                self.faults += not await self.call(self.routers()[0].url + "/v1/chat/completions", asked)
            took.append((time.perf_counter() - began) * 1e3)
            await asyncio.sleep(SAMPLE_EVERY_S)
        return took

    async def phase(self, name: str, seconds: float, work: Work | None) -> dict[str, Any]:
        """Let some time go by, or `work` be done, and say what it cost."""
        await self.play.order("tell")
        await self.watchers.order("")
        stop, self.faults = asyncio.Event(), 0
        samples = [asyncio.create_task(self.sample(kind, stop)) for kind in ("etcd", "router")]
        psutil.cpu_percent()
        before, began = {key: part.cpu_s() for key, part in self.parts.items()}, time.monotonic()
        working = asyncio.ensure_future(work()) if work is not None else None
        sent: dict[str, float] = {}
        while True:
            sent |= (await self.play.order("change", every_s=CHANGE_EVERY_S, seconds=min(seconds, 5.0)))["sent"]
            if time.monotonic() - began >= seconds and (working is None or working.done()):
                break
        spent_s = time.monotonic() - began
        cpu = {key: (part.cpu_s() - before[key]) / spent_s for key, part in self.parts.items()}
        await asyncio.sleep(1.0)
        stop.set()
        told, seen = await self.play.order("tell"), await self.watchers.order("")
        etcd_ms, router_ms = [sorted(await one) for one in samples]
        delays, missed = _delays(sent, seen["seen"])
        return {
            "phase": name,
            "size": self.size,
            "seconds": round(spent_s, 1),
            "cpu": cpu,
            "mb": {key: part.memory_mb() for key, part in self.parts.items()},
            "beats": told,
            "change_ms": _quantiles(delays),
            "changes": len(sent),
            "missed": missed,
            "watched_mb_s": seen["bytes"] / 1e6 / spent_s,
            "etcd_ms": _quantiles(etcd_ms),
            "router_ms": _quantiles(router_ms),
            "requests": len(router_ms),
            "faults": self.faults,
            "machine": psutil.cpu_percent() / 100 * psutil.cpu_count(),
            "load": load_average(),
            **(await _outcome(working)),
        }

    # What happens.

    async def start(self, size: int) -> dict[str, Any]:
        """So many replicas, started within a time that is no stampede."""
        nodes = max(10, size // 10)
        self.size = size
        self.models = max(1, min(MODELS, size // 10))
        before, began = {key: part.cpu_s() for key, part in self.parts.items()}, time.monotonic()
        try:
            told = await self.play.order(
                "grow",
                nodes=nodes + self.killed,
                replicas=size,
                models=self.models,
                within_s=max(2.0, size / self.starts_per_s),
            )
            if "stuck_at" in told:
                raise TooSlow(f"heartbeats are too slow for more than {told['stuck_at']} replicas")
            registered = await self.settled("healthy_services", nodes + 2 * size)
            routed = await self.routed(size)
        except TooSlow as error:
            took = time.monotonic() - began
            spent = ", ".join(f"{key} {(it.cpu_s() - before[key]) / took:.0%}" for key, it in self.parts.items())
            raise TooSlow(f"{error}; CPU since the first of them began, {took:.0f} s ago: {spent}") from error
        known_s = time.monotonic() - began
        await asyncio.sleep(SETTLED * next_step(0, self.records() / len(self.registries()) / self.beats_per_s))
        return {"all_known_s": known_s, "registered_s": registered, "routed_s": routed}

    async def roll(self) -> dict[str, Any]:
        """A deployment, then another revision of it; the planner of the registries does it."""
        count = min(MOST_ROLLED, max(1, self.size // 10))
        took, right, path = [], count, f"/api/v1/deployments/rolled-{self.size}"
        for build in ("a", "b"):
            spec = {
                "template": "simulated",
                "parameters": {"build": build},
                "replicas": {"min": count, "max": count},
                "dwell_s": 0,
                "max_surge": max(1, count // 10),
            }
            began = time.monotonic()
            async with self.http.put(self.registries()[0].url + path, json=spec) as answer:
                if answer.status >= 300:
                    raise RuntimeError(await answer.text())
                revision = (await answer.json())["revision"]
            right = await self._until_stands(path, revision, count)
            took.append(time.monotonic() - began)
            if right < count:
                break
        async with self.http.delete(self.registries()[0].url + path) as answer:
            await answer.read()
        began = time.monotonic()
        await self.settled("registered_services", self.records(), at_most=True)
        names = ("deploy_s", "roll_s")[: len(took)]
        return {
            "deployed": count,
            "stood": right,
            **dict(zip(names, took, strict=True)),
            "delete_s": time.monotonic() - began,
        }

    async def _until_stands(self, path: str, revision: int, count: int) -> int:
        """Wait until the revision stands, for so long as is waited for anything; returns how many of its replicas are ready."""
        began = time.monotonic()
        while True:
            replicas = (await self.get(self.registries()[0], path)).get("replicas", [])
            right = sum(one.get("revision") == revision and one.get("status") == "ready" for one in replicas)
            if right == len(replicas) == count or time.monotonic() - began > SETTLE_S:
                return right
            await asyncio.sleep(0.5)

    def records(self) -> int:
        """How many there are at rest."""
        return max(10, self.size // 10) + 2 * self.size

    async def die(self) -> dict[str, Any]:
        """A rack."""
        nodes = max(1, max(10, self.size // 10) // 25)
        before = (await self.get(self.registries()[0], "/health"))["registered_services"]
        began = time.monotonic()
        gone = (await self.play.order("kill", nodes=nodes))["records"]
        await self.routed(self.size - (gone - nodes) // 2)
        unused = time.monotonic() - began
        await self.settled("healthy_services", before - gone, at_most=True, within_s=ENDED_S)
        noticed = time.monotonic() - began
        await self.settled("registered_services", before - gone, at_most=True, within_s=ENDED_S)
        self.killed += nodes
        self.size -= (gone - nodes) // 2
        return {"lost_records": gone, "unused_s": unused, "noticed_s": noticed, "removed_s": time.monotonic() - began}


async def _outcome(working: "asyncio.Future[dict[str, Any]] | None") -> dict[str, Any]:
    """What came of a phase's work, in time or not."""
    try:
        return await working if working is not None else {}
    except TooSlow as error:
        return {"too_slow": str(error)}


def _delays(sent: Mapping[str, float], seen: list[dict[str, float]]) -> tuple[list[float], int]:
    """ms from each change to each watch, sorted, and how many never came."""
    delays = [(one[mark] - at) * 1e3 for one in seen for mark, at in sent.items() if mark in one]
    return sorted(delays), len(sent) * len(seen) - len(delays)


def _quantiles(ordered: list[float]) -> dict[str, float]:
    if not ordered:
        return {}
    return {"p50": statistics.median(ordered), "p99": ordered[int(len(ordered) * 0.99)], "most": ordered[-1]}


async def measure(options: argparse.Namespace, fleet: Fleet) -> list[dict[str, Any]]:
    """All sizes, one after the other, in the same processes; what cannot be done at a size ends the run, and is said."""
    found: list[dict[str, Any]] = []
    half_s = options.seconds / 2

    async def churn() -> dict[str, Any]:
        return await fleet.play.order("churn", per_s=max(0.2, fleet.size / options.churn_s), seconds=half_s)

    for size in options.sizes:
        try:
            started = await fleet.start(size)
            print(json.dumps({"phase": "start", "size": size, **started, "load": load_average()}), flush=True)
            for name, seconds, work in (
                ("steady", options.seconds, None),
                ("churn", half_s, churn),
                ("rolling", 1.0, fleet.roll),
                ("rack", 1.0, fleet.die),
            ):
                row = await fleet.phase(name, seconds, work)
                found.append({**row, **(started if name == "steady" else {})})
                print(json.dumps(found[-1]), flush=True)
                if "too_slow" in row:
                    raise TooSlow(f"{name}: {row['too_slow']}")
        except TooSlow as error:
            print(f"at {size:,}: {error}", flush=True)
            break  # more of them are no quicker
    return found


async def run(options: argparse.Namespace) -> None:
    """Start, measure, print, end."""
    print(f"{describe()}; load before: {load_average()}")
    flags = ("seconds", "probe_s", "beats_per_s", "starts_per_s", "churn_s")
    told = " ".join(f"--{name.replace('_', '-')} {getattr(options, name):g}" for name in flags)
    print(f"command: python bench/fleet.py --sizes {','.join(map(str, options.sizes))} {told}\n")
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as place, ExitStack() as stack:
        parts, play, watchers = await start_parts(
            Path(place), stack, watches=WATCHES, probe_s=options.probe_s, beats_per_s=options.beats_per_s
        )
        for number in (signal.SIGINT, signal.SIGTERM):  # said twice, it would leave some of them running
            stack.callback(signal.signal, number, signal.SIG_IGN)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CALL_S)) as http:
            fleet = Fleet(
                parts, play, watchers, http, starts_per_s=options.starts_per_s, beats_per_s=options.beats_per_s
            )
            found = await measure(options, fleet)
    price = None
    if options.price:
        price = await price_of_heartbeats(options.price, rounds=3)
    for line in lines_of(found, price):
        print(line)
    if options.json:
        options.json.write_text(json.dumps({"rows": found, "price": price}, indent=1))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--sizes", type=lambda text: [int(it) for it in text.split(",")], default=[10, 100, 1000, 10_000]
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the steady time")
    parser.add_argument("--price", type=int, default=10_000, help="records in the pairs of heartbeats; 0: no pairs")
    parser.add_argument(
        "--probe-s", type=float, default=30.0, help="between two probes of a record (default: as in the field)"
    )
    parser.add_argument(
        "--beats-per-s", type=float, default=50.0, help="heartbeats that a registry wants in a second at most"
    )
    parser.add_argument("--starts-per-s", type=float, default=20.0, help="replicas that begin in a second, at most")
    parser.add_argument(
        "--churn-s",
        type=float,
        default=3600.0,
        help="in so many seconds each replica ends and begins anew, in the churn",
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    raise_file_limit()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
