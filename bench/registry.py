"""What a registry of 10,000 records costs, with its bounds.

    python bench/registry.py [--instances 10000] [--rounds 5]

Starts everything itself, on loopback: a registry over SQLite, a bare aiohttp handler that only parses the same body
(the yardstick of a heartbeat), and etcd (the yardstick of a registry) when it is installed. CPU is that of the server
process, user and system, from /proc; both servers are asked in turn, and the ratio is the median of the pairs.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import uvloop

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # as in `router.py` here

from bench.holds import PROBED, SHORT_S, holds  # noqa: E402
from bench.registry_load import CONNECTIONS, close, connect, flood, registration, report, request  # noqa: E402
from bench.router.machine import cpu_s, free_port  # noqa: E402

SLICE = 500
WATCHERS = 100
HEARTBEAT_S = 5.0
LONGEST_HOLD_MS = 20.0

BARE = """
import json, sys, uvloop
from aiohttp import web

async def parse(request):
    json.loads(await request.read())
    return web.json_response({"message": "Heartbeat received", "timestamp": "2026-01-01T00:00:00.000Z"})

async def healthy(request):
    return web.json_response({"status": "healthy"})

async def main():
    app = web.Application()
    app.router.add_post("/services/{name}/heartbeat", parse)
    app.router.add_get("/health", healthy)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[1])).start()
    await __import__("asyncio").Event().wait()

uvloop.run(main())
"""


@contextmanager
def process(arguments: Sequence[str], directory: Path, ready_url: str) -> Iterator[subprocess.Popen[bytes]]:
    with (directory / "server.log").open("ab") as log:
        started = subprocess.Popen(
            arguments, cwd=directory, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(ready_url, timeout=1).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                if time.monotonic() > deadline or started.poll() is not None:
                    raise RuntimeError(f"{arguments[0]} does not start; see {directory}/server.log") from None
                time.sleep(0.005)
        yield started
    finally:
        started.kill()
        started.wait()


def registry_command(port: int, *flags: str) -> list[str]:
    return [sys.executable, "-m", "registry", "--port", str(port), "--log-level", "ERROR", *flags]


def rss_mb(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 1e6


async def probes_done(port: int, count: int) -> None:
    """Wait until each new record had its first probe."""
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/services") as answer:
            if answer.read().count(b'"health_status":"healthy"') == count:
                return
        await asyncio.sleep(0.5)


async def paired_heartbeats(
    bare: tuple[int, int], registry: tuple[int, int], count: int, rounds: int
) -> tuple[float, float, list[float]]:
    """Median CPU µs per heartbeat of both, and the ratio of each pair of slices, in order.

    The two take turns every 500 heartbeats, so that a machine whose speed drifts slows both.
    """
    costs: dict[str, list[float]] = {"bare": [], "registry": []}
    # Every slice has new connections, which no keep-alive timeout can have closed; opening them is not counted.
    for turn in range(rounds + 1):
        for begin in range(0, count, SLICE):
            numbers = range(begin, min(begin + SLICE, count))
            requests = [request("POST", f"/services/svc-{it:05}/heartbeat", report(it, turn)) for it in numbers]
            for name, (pid, port) in (("bare", bare), ("registry", registry)):
                connections = await connect(port)
                before = cpu_s(pid)
                await flood(connections, requests)
                if turn:  # the first round warms up, and writes every report to the store
                    costs[name].append((cpu_s(pid) - before) / len(numbers) * 1e6)
                close(connections)
    ratios = sorted(ours / base for ours, base in zip(costs["registry"], costs["bare"], strict=True))
    return statistics.median(costs["bare"]), statistics.median(costs["registry"]), ratios


async def steady_heartbeats(pid: int, port: int, count: int, seconds: float) -> tuple[float, float, float]:
    """Everybody beats once in 5 s: CPU share of one core, p50 and p99 latency in ms."""
    connections = await connect(port)
    latencies: list[float] = []
    rate = count / HEARTBEAT_S
    started = time.monotonic()
    before = cpu_s(pid)

    async def worker(index: int) -> None:
        for beat in range(index, int(rate * seconds), CONNECTIONS):
            number = beat % count
            due = started + beat / rate
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            raw = request("POST", f"/services/svc-{number:05}/heartbeat", report(number, beat))
            sent = time.perf_counter()
            await connections[index].ask(raw)
            latencies.append((time.perf_counter() - sent) * 1e3)

    await asyncio.gather(*(worker(index) for index in range(CONNECTIONS)))
    share = (cpu_s(pid) - before) / (time.monotonic() - started)
    close(connections)
    ordered = sorted(latencies)
    return share, ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]


async def listing(port: int, change: Callable[[], Any] | None) -> tuple[float, int]:
    """Median ms of `GET /services`, and its bytes."""
    (connection,) = await connect(port, 1)
    took, size = [], 0
    for _ in range(9):
        if change:
            await change()
        before = time.perf_counter()
        size = len(await connection.ask(request("GET", "/services")))
        took.append((time.perf_counter() - before) * 1e3)
    connection.transport.close()
    return statistics.median(took[1:]), size


async def fan_out(port: int, changes: int) -> tuple[float, float]:
    """ms from sending a change to each of 100 watchers having its line: p50 and p99."""
    arrived: dict[int, list[float]] = {number: [] for number in range(changes)}

    async def watch(ready: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=64 << 20)
        writer.write(b"GET /v1/watch HTTP/1.1\r\nHost: x\r\n\r\n")
        while b"snapshot" not in (await reader.readuntil(b"\n"))[:200]:
            pass
        ready.set()
        seen = 0
        while seen < changes:
            line = await reader.readuntil(b"\n")
            now = time.perf_counter()
            if b'"mark":' in line:
                number = int(re.search(rb'"mark":(\d+)', line)[1])
                arrived[number].append(now)
                seen += 1
        writer.close()

    readies = [asyncio.Event() for _ in range(WATCHERS)]
    tasks = [asyncio.ensure_future(watch(ready)) for ready in readies]
    for ready in readies:
        await ready.wait()
    (connection,) = await connect(port, 1)
    sent = {}
    for number in range(changes):
        sent[number] = time.perf_counter()
        await connection.ask(request("PUT", "/services/svc-00000", {"metadata": {"mark": number}}))
        await asyncio.sleep(0.05)
    await asyncio.gather(*tasks)
    connection.transport.close()
    delays = sorted((at - sent[number]) * 1e3 for number, times in arrived.items() for at in times)
    return delays[len(delays) // 2], delays[int(len(delays) * 0.99)]


async def etcd_rates(port: int, count: int) -> tuple[float, float]:
    """Puts and keepalives per second through etcd's JSON gateway."""

    def encoded(text: str) -> str:
        return b64encode(text.encode()).decode()

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v3/lease/grant", data=b'{"TTL":3600}') as answer:
        lease = json.load(answer)["ID"]
    puts = [
        request(
            "POST",
            "/v3/kv/put",
            {"key": encoded(f"svc-{number:05}"), "value": encoded(json.dumps(report(number, 0))), "lease": lease},
        )
        for number in range(count)
    ]
    before = time.perf_counter()
    await flood(await connect(port), puts)
    put_rate = count / (time.perf_counter() - before)
    # The streaming call answers in chunks; curl-like single requests are what the JSON gateway offers a plain client.
    body = json.dumps({"ID": lease}).encode()

    def keepalive() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v3/lease/keepalive", data=body) as answer:
            answer.read()

    loop = asyncio.get_running_loop()
    before = time.perf_counter()
    for _ in range(0, min(count, 2000), 8):
        await asyncio.gather(*(loop.run_in_executor(None, keepalive) for _ in range(8)))
    return put_rate, min(count, 2000) / (time.perf_counter() - before)


def line(what: str, figure: str, bound: str = "", *, holds: bool | None = None) -> None:
    print(f"{what:<58}{figure:>22}   {bound:<16}{'' if holds is None else 'holds' if holds else 'MISSED'}")


async def beats(bare: tuple[int, int], registry: tuple[int, int], options: argparse.Namespace) -> None:
    """What heartbeats cost, in pairs and in the steady state."""
    base, ours, ratios = await paired_heartbeats(bare, registry, options.instances, options.rounds)
    ratio = statistics.median(ratios)
    line("heartbeat with report, CPU: bare handler", f"{base:.0f} µs")
    line("heartbeat with report, CPU: registry", f"{ours:.0f} µs")
    quarter = len(ratios) // 4
    spread = f"{ratio:.2f} ({ratios[quarter]:.2f}-{ratios[-quarter - 1]:.2f})"
    line(f"  ratio, median of {len(ratios)} pairs (quartiles)", spread, "<= 1.3", holds=ratio <= 1.3)


async def reads(port: int, count: int) -> None:
    """What it costs to see the table, and how soon a change is seen."""

    async def change_a_tenth() -> None:
        numbers = range(0, count, 10)
        beat = int(time.time())
        connections = await connect(port)
        requests = [request("POST", f"/services/svc-{it:05}/heartbeat", report(it, beat)) for it in numbers]
        await flood(connections, requests)
        close(connections)

    still, size = await listing(port, None)
    line(f"GET /services, nothing changed ({size / 1e6:.1f} MB)", f"{still:.1f} ms", "< 120 ms", holds=still < 120)
    changed, _ = await listing(port, change_a_tenth)
    line("GET /services, a tenth changed before", f"{changed:.1f} ms", "< 120 ms", holds=changed < 120)
    p50, p99 = await fan_out(port, 40)
    line(f"change to {WATCHERS} watchers, p50 / p99", f"{p50:.1f} / {p99:.1f} ms", "p99 <= 50 ms", holds=p99 <= 50)


async def change_all(port: int, count: int) -> None:
    """Every replica has new load figures."""
    beat = time.monotonic_ns() // 1000
    connections = await connect(port)
    await flood(
        connections,
        [request("POST", f"/services/svc-{it:05}/heartbeat", report(it, beat + it)) for it in range(count)],
    )
    close(connections)


def agent(number: int, port: int) -> dict[str, Any]:
    """The record of a node's agent."""
    node = f"node-{number:04}"
    metadata = {"type": "node-agent", "node": node, "metrics_path": "/metrics"}
    return {**registration(number, port + 1), "name": f"agent-{node}", "metadata": metadata}


async def held(directory: Path, babysitters: int, count: int) -> None:
    """How long each call holds the loop of a registry of so many records, and a tenth as many agents."""
    port, probe = free_port(), free_port()
    command = registry_command(port, "--health-interval", "3600", "--store", "memory://")
    command[1:3] = ["-c", PROBED, str(probe)]

    async def register(**more: Any) -> None:
        bodies = [registration(it, babysitters) for it in range(count)]
        bodies += [agent(it, babysitters) for it in range(count // 10)]
        await flood(await connect(port), [request("POST", "/services", {**body, **more}) for body in bodies])

    with process(command, directory, f"http://127.0.0.1:{port}/health"):
        await register()
        await probes_done(port, count + count // 10)
        print("\nlongest hold of the loop, by the clock / by CPU")
        every = holds(port, probe, lambda: change_all(port, count), lambda: register(ttl_s=SHORT_S))
        async for name, clock_ms, cpu_ms, size in every:
            shown = f"  {name} ({size / 1e6:.1f} MB)" if size else f"  {name}"
            figure = f"{clock_ms:.1f} / {cpu_ms:.1f} ms"
            line(shown, figure, "CPU <= 20 ms", holds=cpu_ms <= LONGEST_HOLD_MS)


async def second_life(port: int, directory: Path, options: argparse.Namespace) -> None:
    """How long a killed registry takes to serve what it knew, and then: everybody beats, everybody is probed."""
    url = f"http://127.0.0.1:{port}/health"
    before = time.perf_counter()
    with process(registry_command(port), directory, url) as registry:
        took, spent = time.perf_counter() - before, cpu_s(registry.pid)
        with urllib.request.urlopen(url) as answer:
            loaded = json.load(answer)["registered_services"]
        what = f"restart after kill -9, {loaded:,} records, until it answers"
        line(what, f"{took:.2f} s, CPU {spent:.2f} s", "<= 2 s", holds=took <= 2)
        share, p50, p99 = await steady_heartbeats(registry.pid, port, options.instances, options.seconds)
        what = f"{options.instances:,} beating every {HEARTBEAT_S:.0f} s and probed every 30 s"
        line(f"{what}: of one core", f"{share:.0%}")
        line("  heartbeat latency p50 / p99", f"{p50:.2f} / {p99:.2f} ms")


async def yardstick(directory: Path, count: int) -> None:
    """What etcd's gateway does on this machine."""
    if not shutil.which("etcd"):
        print("etcd is not installed: no yardstick")
        return
    client, peer = free_port(), free_port()
    urls = (f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}")
    arguments = ["etcd", "--name", "b", "--data-dir", str(directory / "etcd"), "--log-level", "error"]
    arguments += ["--listen-client-urls", urls[0], "--advertise-client-urls", urls[0]]
    arguments += ["--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1]]
    arguments += ["--initial-cluster", f"b={urls[1]}"]
    with process(arguments, directory, f"{urls[0]}/health") as etcd:
        before = cpu_s(etcd.pid)
        puts, keepalives = await etcd_rates(client, count)
        line("yardstick: etcd's gateway, puts per second", f"{puts:,.0f}")
        line("yardstick: etcd's gateway, keepalives per second", f"{keepalives:,.0f}")
        spent = (cpu_s(etcd.pid) - before) / (count + min(count, 2000)) * 1e6
        line("  CPU of etcd per call", f"{spent:.0f} µs")


async def measure(options: argparse.Namespace) -> None:
    count = options.instances
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"load of the machine before: {os.getloadavg()[0]:.2f}")
    print(f"command: python bench/registry.py --instances {count} --rounds {options.rounds}\n")
    with tempfile.TemporaryDirectory(prefix="registry-bench-") as place, ExitStack() as stack:
        directory = Path(place)
        bare_port, port = free_port(), free_port()
        bare_command = [sys.executable, "-c", BARE, str(bare_port)]
        bare = stack.enter_context(process(bare_command, directory, f"http://127.0.0.1:{bare_port}/"))
        with process(
            registry_command(port, "--health-interval", "3600"), directory, f"http://127.0.0.1:{port}/health"
        ) as registry:
            empty_mb = rss_mb(registry.pid)
            before = time.perf_counter()
            claims = [request("POST", "/services", registration(number, bare_port)) for number in range(count)]
            await flood(await connect(port), claims)
            line("registrations per second (SQLite)", f"{count / (time.perf_counter() - before):,.0f}")
            await probes_done(port, count)
            await beats((bare.pid, bare_port), (registry.pid, port), options)
            await reads(port, count)
            full_mb = rss_mb(registry.pid)
            line("resident memory, empty / full", f"{empty_mb:.0f} / {full_mb:.0f} MB", "< 200 MB", holds=full_mb < 200)
        await second_life(port, directory, options)
        await held(directory, bare_port, count)
        await yardstick(directory, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds of heartbeats")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the steady run")
    uvloop.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
