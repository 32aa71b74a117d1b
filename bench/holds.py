"""How long the calls of a large registry keep everybody else waiting: a part of `bench/registry.py`.

The registry runs as it always does, with one more task in its loop: it wakes each millisecond, and remembers the longest time
between two wakings, of the clock and of the thread's CPU. On a machine that others use as well, only the CPU says what the
registry did.
"""

import asyncio
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable

PROBED = """
import asyncio, sys, time
from registry import app
from registry.__main__ import main

longest = [0.0, 0.0]

async def probe():
    while True:
        clock, cpu = time.perf_counter(), time.thread_time()
        await asyncio.sleep(0.001)
        longest[:] = max(longest[0], time.perf_counter() - clock - 0.001), max(longest[1], time.thread_time() - cpu)

async def tell(reader, writer):
    writer.write(b"%f %f" % tuple(longest))
    longest[:] = 0.0, 0.0
    writer.close()

async def until_stopped(scope, wait=app.until_stopped):
    probing = asyncio.ensure_future(probe())
    await asyncio.start_server(tell, "127.0.0.1", port)
    await wait(scope)

port = int(sys.argv.pop(1))
app.until_stopped = until_stopped
sys.exit(main())
"""
"""`python -c PROBED PORT FLAG…`: a registry; whoever connects to PORT is told the longest hold since the last time."""
GZIP = "Accept-Encoding: gzip"
CALLS = (
    ("GET /services", "/services", ""),
    ("GET /services, gzip", "/services", GZIP),
    ("GET /services?status=running", "/services?status=running", ""),
    ("GET /v1/watch, its snapshot", "/v1/watch", ""),
    ("GET /api/v1/replicas", "/api/v1/replicas", ""),
    ("GET /api/v1/replicas, gzip", "/api/v1/replicas", GZIP),
    ("GET /api/v1/replicas?status=ready", "/api/v1/replicas?status=ready", ""),
    ("GET /api/v1/nodes", "/api/v1/nodes", ""),
    ("GET /stats", "/stats", ""),
    ("GET /metrics", "/metrics", ""),
    ("GET /sd/prometheus", "/sd/prometheus", ""),
    ("GET /sd/prometheus, gzip", "/sd/prometheus", GZIP),
)
TRIES = 3
SHORT_S = 5


async def longest_ms(port: int) -> tuple[float, float]:
    """The longest hold since this was asked last: of the clock, of the CPU."""
    reader, _ = await asyncio.open_connection("127.0.0.1", port)
    clock, cpu = map(float, (await reader.read()).split())
    return clock * 1e3, cpu * 1e3


async def ask(port: int, path: str, header: str) -> int:
    """One call on a connection of its own, or the snapshot of a watch; returns the bytes of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *([header] if header else []), "", ""]
    writer.write("\r\n".join(lines).encode())
    size = 0
    while data := await reader.read(1 << 20):
        size += len(data)
        if path == "/v1/watch" and data.endswith(b"}\n\r\n"):
            break
    writer.close()
    return size


async def holds(
    port: int, probe: int, change: Callable[[], Awaitable[None]], shorten: Callable[[], Awaitable[None]]
) -> AsyncIterator[tuple[str, float, float, int]]:
    """Of each call its name, the longest hold meanwhile (of the clock and of the CPU, medians of the tries), and its bytes.

    Args:
        port: The registry's.
        probe: Where it tells of holds.
        change: Changes every record, so that nothing that is remembered serves.
        shorten: Gives every record a lease of `SHORT_S`.
    """
    for name, path, header in CALLS:
        found, size = [], 0
        for _ in range(TRIES):
            await change()
            await longest_ms(probe)
            size = await ask(port, path, header)
            found.append(await longest_ms(probe))
        yield name, statistics.median(it[0] for it in found), statistics.median(it[1] for it in found), size
    await longest_ms(probe)
    await asyncio.sleep(5)
    yield "nothing, for five seconds", *await longest_ms(probe), 0
    _, watch = await asyncio.open_connection("127.0.0.1", port)
    watch.write(b"GET /v1/watch HTTP/1.1\r\nHost: x\r\n\r\n")
    await shorten()
    await longest_ms(probe)
    await asyncio.sleep(SHORT_S + 3)
    watch.close()
    yield "all leases end together, and somebody watches", *await longest_ms(probe), 0
