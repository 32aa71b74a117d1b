"""A roll, a reload and a stop, by clients that never ask twice: none of them may lose a request."""

import asyncio
import http.client
import json
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tests.ports import free_port
from tests.router import rolling
from tests.router.fakes import SSE_HEAD, Call, FakeReplica, event
from tests.router.rolling import Client, Tally
from tests.router.test_process import process

pytestmark = pytest.mark.e2e
BODY = json.dumps({"model": "m", "messages": []})


class Router:
    """One under test, whose log tells how often its workers were replaced."""

    def __init__(self, child: asyncio.subprocess.Process, port: int, workers: int, folder: Path) -> None:
        self.child, self.port, self.workers, self.folder = child, port, workers, folder
        self.rolled = self.stopped = 0

    @property
    def log(self) -> str:
        return (self.folder / "router.log").read_text()

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.child.pid).children()

    async def until_rolled(self, wait_s: float = 240) -> None:
        """Wait until every worker was replaced since the last time; on a machine too busy to start one in time, roll again."""
        stopped = 0
        async with asyncio.timeout(wait_s):
            while self.log.count('"worker.rolled"') < self.rolled + self.workers:
                if self.log.count('"worker.roll_stopped"') > stopped + self.stopped:
                    stopped += 1
                    self.rolled = self.log.count('"worker.rolled"')
                    self.child.send_signal(signal.SIGHUP)
                await asyncio.sleep(0.05)
        self.rolled = self.log.count('"worker.rolled"')
        self.stopped += stopped

    async def roll(self) -> None:
        self.child.send_signal(signal.SIGHUP)
        await self.until_rolled()


@asynccontextmanager
async def running(folder: Path, replica: FakeReplica, workers: int, *more: str) -> AsyncIterator[Router]:
    static, port = folder / "static.json", free_port()
    entry = {"name": "s", "host": "127.0.0.1", "port": replica.port, "metadata": {"models": ["m"]}}
    static.write_text(json.dumps([entry]))
    flags = ("--router-port", str(port), "--static-services", str(static), "--workers", str(workers), *more)
    async with process("router", *flags, cwd=folder) as child:
        router = Router(child, port, workers, folder)
        async with asyncio.timeout(60):
            while '"service.listening"' not in router.log:
                await asyncio.sleep(0.05)
        yield router


def ask_by_library(port: int, stop: threading.Event, tally: Tally) -> None:
    """`http.client` opens a connection anew only when an answer said that it closes."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while not stop.wait(0.02):
        try:
            client.request("POST", "/v1/chat/completions", BODY, {"content-type": "application/json"})
            answer = client.getresponse()
            assert (answer.status, answer.read()) == (200, b'{"ok":1}')
            tally.answered += 1
        except (OSError, http.client.HTTPException, AssertionError) as error:
            tally.errors.append(f"http.client: {error!r}")
            client.close()
    client.close()


@asynccontextmanager
async def storm(router: Router, clients: int) -> AsyncIterator[Tally]:
    """Clients of several habits, until the block ends; each has had an answer after the last roll then."""
    tally, by_library, stop = Tally(), Tally(), threading.Event()
    habits = [(0.01, 0), (0.02, 7), (0.3, 2), (1.5, 0)]
    asking = [
        Client(router.port, tally, pause_s=pause_s, stream_each=stream_each)
        for pause_s, stream_each in habits
        for _ in range(clients // len(habits))
    ]
    tasks = [asyncio.ensure_future(client.run()) for client in asking]
    library = asyncio.ensure_future(asyncio.to_thread(ask_by_library, router.port, stop, by_library))
    try:
        yield tally
        await asyncio.sleep(2 * habits[-1][0])
    finally:
        stop.set()
        for client in asking:
            client.leaves = True
        await asyncio.gather(*tasks, library)
    assert by_library.answered
    assert not by_library.errors


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.world), 2])
async def test_rolls_and_reloads_cost_clients_that_never_ask_twice_nothing_D18(tmp_path: Path, workers: int) -> None:
    config = tmp_path / "router.toml"
    config.write_text("queue_limit = 100\n")
    async with (
        FakeReplica(rolling.answer) as replica,
        running(tmp_path, replica, workers, "--config", str(config)) as router,
        storm(router, 16) as tally,
    ):
        await asyncio.sleep(0.5)
        await router.roll()
        config.write_text("queue_limit = 101\n")
        await router.until_rolled()
        for worker in router.processes():
            worker.terminate()  # a terminal's or a service manager's signal to all: the master decides
        await router.roll()
    assert not tally.errors
    assert tally.answered > 100
    assert tally.connections == 16, "the new workers go on with the connections of the old ones"


@pytest.mark.world
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("workers", [1, 2])
async def test_100_000_requests_over_50_rolls_have_no_error_D18(tmp_path: Path, workers: int) -> None:
    async with (
        FakeReplica(rolling.answer) as replica,
        running(tmp_path, replica, workers) as router,
        storm(router, 64) as tally,
    ):
        for number in range(1, 51):
            await router.roll()
            async with asyncio.timeout(60):
                while tally.answered < 2000 * number:
                    await asyncio.sleep(0.05)
            replica.calls.clear()
    assert not tally.errors
    assert tally.answered >= 100_000


async def test_a_stream_that_lasts_longer_than_a_drain_may_is_not_cut_by_a_roll_D18(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def stream(call: Call) -> None:
        if call.line.startswith(b"GET"):
            await rolling.answer(call)
            return
        await call.send(SSE_HEAD + event("a"))
        await go.wait()
        await call.send(event("b") + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    async with FakeReplica(stream) as replica, running(tmp_path, replica, 1, "--drain-timeout", "0.5") as router:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(rolling.ask("m", stream=True))
        await reader.readuntil(b'"a"}\n\n\r\n')
        await router.roll()
        await asyncio.sleep(1.5)
        go.set()
        assert (await reader.readuntil(b"\r\n0\r\n\r\n")).count(b"data: ") == 2
        async with asyncio.timeout(20):
            while len(router.processes()) > 1:
                await asyncio.sleep(0.05)
        writer.write(rolling.ask("m", stream=True))  # the connection is the new worker's by now
        assert (await reader.readuntil(b"\r\n0\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_stop_tells_each_connection_that_asks_once_more_D16(tmp_path: Path) -> None:
    async with FakeReplica(rolling.answer) as replica, running(tmp_path, replica, 2) as router:
        tally = Tally()
        asking = [Client(router.port, tally, pause_s=0.05) for _ in range(16)]
        tasks = [asyncio.ensure_future(client.run()) for client in asking]
        async with asyncio.timeout(30):
            while tally.answered < 200:
                await asyncio.sleep(0.01)
        for client in asking:
            client.leaves_when_told = True
        router.child.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
        assert await asyncio.wait_for(router.child.wait(), 10) == 0
    assert not tally.errors
    assert tally.told == len(asking)
