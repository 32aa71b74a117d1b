"""How soon the requests that wait for a cold model have their first token, once it is ready.

    python bench/router/cold.py [--requests 1000] [--workers 2] [--repetitions 5] [--source FOLDER]

Starts a router as an operator would, a backend (C, built on demand) and, in this process, a registry with one deployment: the
first demand starts it, and some seconds later it is ready. `direct`: the same number of connections ask the backend itself at
one moment, which is what this machine needs without any router. Prints one line of JSON per repetition, in milliseconds.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import uvloop
from aiohttp import web

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # as in bench/router.py

from bench.router.machine import BenchError, free_port, load_average, raise_file_limit, started  # noqa: E402
from bench.router.peers import build_programs  # noqa: E402
from bench.router.workloads import MODEL, WORKLOADS  # noqa: E402
from common.wire.deployment import DEPLOYMENT_KEY, Demand, DemandAnswer, DeploymentPhase, ModelState  # noqa: E402
from common.wire.record import Put, ServiceRecord, Snapshot  # noqa: E402

REQUEST = WORKLOADS["w2"].request()
START_S = 3.0
WITHIN_S = 60.0
CORES = ",".join(map(str, sorted(os.sched_getaffinity(0))))
"""All that we have: the figure is of the whole machine."""


class Asker(asyncio.Protocol):
    """One connection that asks once; `first_at`: when its first event came."""

    def __init__(self) -> None:
        self.first_at = 0.0
        self.over = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        """asyncio: a piece of the answer."""
        if not self.first_at:
            self._data += data
            if b"data:" in self._data:
                self.first_at = time.monotonic()
        if b"[DONE]" in data:
            self.over.set()

    def connection_lost(self, _error: Exception | None) -> None:
        """asyncio: closed."""
        self.over.set()

    def close(self) -> None:
        """Leave."""
        if self._transport is not None:
            self._transport.close()


class Registry:
    """One deployment, started by the first demand."""

    def __init__(self, backend_port: int) -> None:
        self.backend_port = backend_port
        self.demand = Demand()
        self.wakes = 0
        self.is_ready = False
        self._lines: asyncio.Queue[Any] = asyncio.Queue()

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/watch`."""
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(msgspec.json.encode(Snapshot("e", 1, [])) + b"\n")
        while True:
            await response.write(msgspec.json.encode(await self._lines.get()) + b"\n")

    async def take(self, request: web.Request) -> web.Response:
        """`POST /v1/routers/{router}/demand`."""
        before, self.demand = self.demand, msgspec.json.decode(await request.read(), type=Demand)
        self.wakes += not before.models and bool(self.demand.models)
        phase = DeploymentPhase.READY if self.is_ready else DeploymentPhase.STARTING
        answer = DemandAnswer(models=[ModelState(model=MODEL, deployment="d", phase=phase, stage="loading")])
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    def waiting(self) -> int:
        """Requests that the router holds."""
        return self.demand.models[MODEL].waiting if MODEL in self.demand.models else 0

    def become_ready(self) -> float:
        """The replica is there; returns when."""
        self.is_ready = True
        metadata = {"type": "openai-api", "models": [MODEL], DEPLOYMENT_KEY: "d"}
        record = ServiceRecord(
            name="r",
            host="127.0.0.1",
            port=self.backend_port,
            url=f"http://127.0.0.1:{self.backend_port}",
            metadata=metadata,
        )
        self._lines.put_nowait(Put("e", 2, record))
        return time.monotonic()


async def until(check: Any) -> None:
    """Wait for something.

    Raises:
        BenchError: It does not come.
    """
    try:
        async with asyncio.timeout(WITHIN_S):
            while not check():  # noqa: ASYNC110 - what it waits for is in another process
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise BenchError("the router does not hold the requests") from error


async def ask(port: int, count: int, *, spread_s: float) -> list[Asker]:
    """Open `count` connections that ask."""
    loop = asyncio.get_running_loop()
    askers = [Asker() for _ in range(count)]

    async def one(number: int, asker: Asker) -> None:
        await asyncio.sleep(spread_s * number / count)
        await loop.create_connection(lambda: asker, "127.0.0.1", port)

    await asyncio.gather(*(one(number, asker) for number, asker in enumerate(askers)))
    return askers


async def first_tokens(askers: Sequence[Asker], since: float) -> dict[str, int]:
    """Milliseconds until the first events; `lost`: how many got none."""
    async with asyncio.timeout(WITHIN_S):
        for asker in askers:
            await asker.over.wait()
    for asker in askers:
        asker.close()
    times = sorted((asker.first_at - since) * 1e3 for asker in askers if asker.first_at)
    if not times:
        raise BenchError("nobody was answered")
    figures = {"first": times[0], "median": times[len(times) // 2], "last": times[-1]}
    return {name: round(value) for name, value in figures.items()} | {"lost": len(askers) - len(times)}


async def repetition(options: argparse.Namespace, backend: Path, folder: Path) -> dict[str, Any]:
    """One cold start, and the same without a router."""
    backend_port, registry_port, router_port = free_port(), free_port(), free_port()
    registry = Registry(backend_port)
    app = web.Application()
    app.router.add_get("/v1/watch", registry.watch)
    app.router.add_post("/v1/routers/{router}/demand", registry.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", registry_port).start()
    words = [sys.executable, "-m", "router", "--workers", str(options.workers), "--router-port", str(router_port)]
    words += ["--registry-url", f"http://127.0.0.1:{registry_port}", "--data-dir", str(folder)]
    with (
        started([str(backend), str(backend_port)], core=CORES, log=folder / "backend.log", folder=folder),
        started(words, core=CORES, log=folder / "router.log", folder=options.source),
    ):
        await until(lambda: "service.listening" in (folder / "router.log").read_text())
        await asyncio.sleep(1)
        began = time.monotonic()
        direct = await first_tokens(await ask(backend_port, options.requests, spread_s=0), began)
        askers = await ask(router_port, options.requests, spread_s=1)
        await until(lambda: registry.waiting() == options.requests)
        await asyncio.sleep(START_S)
        held = await first_tokens(askers, registry.become_ready())
    await runner.cleanup()
    return {"held": held, "direct": direct, "wakes": registry.wakes, "load_average": load_average()}


def main(argv: Sequence[str]) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--source", type=Path, default=ROOT, help="the tree whose router runs")
    options = parser.parse_args(argv)
    raise_file_limit()
    for _ in range(options.repetitions):
        with tempfile.TemporaryDirectory() as folder:
            _, backend = build_programs(Path(folder))
            print(json.dumps(uvloop.run(repetition(options, backend, Path(folder)))), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BenchError as error:
        sys.exit(str(error))
