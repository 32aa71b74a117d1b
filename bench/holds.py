"""How long the calls of a large registry keep everybody else waiting: a part of `bench/registry.py`.

A process beside sends one plain heartbeat after the other, a thousand times a second at most, and remembers the longest time
one took. Of a call that holds the registry's loop for 100 ms a heartbeat takes 100 ms.
"""

import asyncio
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

PINGER = """
import select, socket, sys, time

server = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
raw = b"POST /services/svc-00000/heartbeat HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 0\\r\\n\\r\\n"
longest = 0.0
while True:
    began = time.perf_counter()
    server.sendall(raw)
    answer = b""
    while not answer.endswith(b"}"):
        answer += server.recv(65536)
    longest = max(longest, time.perf_counter() - began)
    if select.select([sys.stdin], [], [], 0.001)[0]:
        if not sys.stdin.readline():
            break
        print(longest * 1e3, flush=True)
        longest = 0.0
"""
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
Longest = Callable[[], Awaitable[float]]


@asynccontextmanager
async def pinged(port: int) -> AsyncIterator[Longest]:
    """Gives a function that says the longest ms of a heartbeat since it was asked last."""
    pinger = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PINGER, str(port), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    orders, told = cast("asyncio.StreamWriter", pinger.stdin), cast("asyncio.StreamReader", pinger.stdout)

    async def longest() -> float:
        orders.write(b"\n")
        return float(await told.readline())

    try:
        yield longest
    finally:
        pinger.kill()
        await pinger.wait()


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


async def holds(port: int, change: Callable[[], Awaitable[None]]) -> AsyncIterator[tuple[str, float, int]]:
    """Of each call its name, the longest ms that a heartbeat took meanwhile (median of the tries), and its bytes.

    Args:
        port: The registry's.
        change: Changes every record, so that nothing that is remembered serves.
    """
    async with pinged(port) as longest:
        for name, path, header in CALLS:
            found, size = [], 0
            for _ in range(TRIES):
                await change()
                await longest()
                size = await ask(port, path, header)
                found.append(await longest())
            yield name, statistics.median(found), size
        await asyncio.sleep(5)
        yield "nothing, for five seconds", await longest(), 0
