"""Routers tell each other of their placements: in one process for what a peer may do wrong, as processes for the rest."""

import asyncio
import json
import os
import signal
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web

from common.http.client import make_session
from common.tasks import TaskScope
from common.wire.record import ServiceRecord
from router.counters import BLOCKS_EACH, IN_FLIGHT, Shape, SharedCounters
from router.model import Endpoint, Facts, Replica
from router.peers import PATH, Peers
from router.policy.blocks import chain
from router.policy.fleet_view import FleetView
from router.policy.peers import SHARE_LIMIT_BYTES
from router.sharing import Sharing
from tests.ports import free_port
from tests.router.fakes import Call, FakeReplica, plain

TOKEN = "t" * 32
ROOT = Path(__file__).parents[2]
PROMPT = b'[{"role":"user","content":"' + b"long ago " * 900 + b'"}]'
FACTS = Facts(model="m", stream=True, prompt_bytes=len(PROMPT), blocks=chain(PROMPT, 0))


class Member:
    """A router of one worker, as far as it tells and hears."""

    def __init__(self, name: str = "r") -> None:
        shape = Shape(2, BLOCKS_EACH)
        descriptor = SharedCounters.create(shape)
        self.counters, master = SharedCounters(descriptor, shape, 0), SharedCounters(descriptor, shape)
        os.close(descriptor)
        record = ServiceRecord(name=name, host="h", port=1, url="", metadata={})
        self.replica = Replica(record, "g", leased=True, slot=1)
        self.endpoint = Endpoint(self.replica.id, name, "h", 1, 1, models=("m",))
        self.fleet = FleetView(elsewhere=Sharing(self.counters))
        self.view = self.fleet.view(self.endpoint)
        self.peers = Peers(master, lambda: [self.replica], TOKEN)

    def held(self) -> int:
        [view] = self.fleet.views([self.endpoint], time.monotonic())
        return view.index.held(FACTS.blocks)


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """Its URL."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def until(true: Callable[[], Any], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        await asyncio.sleep(0.01)


@pytest.fixture
async def scope() -> AsyncIterator[TaskScope]:
    async with TaskScope("test") as opened:
        yield opened


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with make_session(timeout_s=5.0) as opened:
        yield opened


async def test_a_placement_is_followed_by_the_other_router_and_its_load_goes_with_it(
    scope: TaskScope, session: aiohttp.ClientSession
) -> None:
    one, other = Member(), Member()
    async with serving(one.peers.app()) as server:
        for member in (one, other):
            scope.spawn("run", member.peers.run())
            member.peers.follow([server], session, scope)  # its own, too: that counts for nothing
        await asyncio.sleep(0.2)
        placement = one.view.place(FACTS, time.monotonic())
        one.counters.add(1, IN_FLIGHT)
        placed_at = time.monotonic()
        await until(lambda: other.held() == len(FACTS.blocks))
        assert time.monotonic() - placed_at < 1.0
        await until(lambda: other.view.in_flight == 1)
        assert other.view.outstanding == len(PROMPT)
        assert other.view.backlog_s(time.monotonic()) > 0.0
        assert one.view.outstanding == len(PROMPT)
        placement.first_byte(time.monotonic())
        await until(lambda: other.view.outstanding == 0)
        assert abs(Sharing(other.counters).last_read_s(1) - time.monotonic()) < 1.0
        one.counters.add(1, IN_FLIGHT, 5)
        await until(lambda: other.view.in_flight == 6)
    await until(lambda: other.view.in_flight == 0)


async def test_replicas_that_are_not_ours_are_left_out(scope: TaskScope, session: aiohttp.ClientSession) -> None:
    one, other = Member("elsewhere"), Member()
    async with serving(one.peers.app()) as server:
        for member in (one, other):
            scope.spawn("run", member.peers.run())
        other.peers.follow([server], session, scope)
        await asyncio.sleep(0.2)
        one.view.place(FACTS, time.monotonic())
        await asyncio.sleep(0.3)
        assert other.held() == other.view.outstanding == 0


def framed(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


@pytest.mark.parametrize(
    "words",
    [framed(b"junk"), framed(b""), struct.pack("<I", SHARE_LIMIT_BYTES + 1), framed(b"\x94\xa1x\xc3\x80")[:-2], None],
    ids=["junk", "nothing", "too long", "cut off", "an older router"],
)
async def test_a_peer_that_tells_no_share_is_told_of_once_and_counts_for_nothing(
    words: bytes | None, scope: TaskScope, session: aiohttp.ClientSession
) -> None:
    asked = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(words or b"")
        return response

    app = web.Application()
    if words is not None:
        app.router.add_get(PATH, answer)
    member = Member()
    scope.spawn("run", member.peers.run())
    with structlog.testing.capture_logs() as logs:
        async with serving(app) as server:
            member.peers.follow([server], session, scope)
            await until(lambda: logs)
            await asyncio.sleep(0.2)
    assert [line["event"] for line in logs] == ["peer.not_heard"]
    assert member.view.in_flight == member.view.outstanding == 0
    assert asked == (words is not None)


async def test_who_shows_no_token_hears_nothing(session: aiohttp.ClientSession) -> None:
    async with serving(Member().peers.app()) as server:
        for headers in ({}, {"Authorization": "Bearer " + "u" * 32}):
            async with session.get(server + PATH, headers=headers) as answer:
                assert answer.status == 401
                assert await answer.read() == b""


async def test_a_listener_that_stops_reading_keeps_nobody_waiting(
    scope: TaskScope, session: aiohttp.ClientSession
) -> None:
    one, other = Member(), Member()
    scope.spawn("run", one.peers.run())
    scope.spawn("run", other.peers.run())
    async with serving(one.peers.app()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.rsplit(":", 1)[1]))
        writer.write(f"GET {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        other.peers.follow([server], session, scope)
        await asyncio.sleep(0.3)
        one.view.place(FACTS, time.monotonic())
        await until(lambda: other.held() == len(FACTS.blocks))
        writer.close()


# As processes.


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Fleet:
    """Three routers and two replicas; a replica keeps what it is asked until `released`."""

    def __init__(self, folder: Path, session: aiohttp.ClientSession) -> None:
        self.folder, self.http = folder, session
        self.ports = [free_port() for _ in range(3)]
        self.shares = [free_port() for _ in range(3)]
        self.routers: list[asyncio.subprocess.Process] = []
        self.released = asyncio.Event()
        self.released.set()

    async def answer(self, call: Call) -> None:
        if call.line.startswith(b"GET"):
            await call.send(plain(b'{"object":"list","data":[{"id":"m"}]}'))
        else:
            await self.released.wait()
            await call.send(plain(b'{"usage":{"prompt_tokens":9,"completion_tokens":1}}'))

    async def start(self, stack: AsyncExitStack) -> None:
        replicas = [await stack.enter_async_context(FakeReplica(self.answer)) for _ in range(2)]
        self.replicas = replicas
        services = [
            {"name": f"r{number}", "host": "127.0.0.1", "port": one.port, "metadata": {"models": ["m"]}}
            for number, one in enumerate(replicas)
        ]
        (self.folder / "static.json").write_text(json.dumps(services))
        token = self.folder / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        with_all = ",".join(f"http://127.0.0.1:{port}" for port in self.shares)
        for port, share_port in zip(self.ports, self.shares, strict=True):
            with (self.folder / f"{port}.log").open("wb") as log:
                router = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "router", "--port", str(port), "--static-services", "static.json"),
                    *("--workers", "1", "--share-port", str(share_port), "--share-with", with_all),
                    *("--share-token-file", "token", "--data-dir", f"data{port}", "--health-interval", "0.5"),
                    cwd=self.folder,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    stderr=log,
                )
            self.routers.append(router)
            stack.push_async_callback(ended, router)
        for number in range(3):
            await self.explained_until(number, lambda seen: len(seen["candidates"]) == 2, 30.0)

    async def ask(self, number: int, prompt: str) -> None:
        async with self.http.post(
            f"http://127.0.0.1:{self.ports[number]}/v1/chat/completions", json=body(prompt)
        ) as answer:
            assert answer.status == 200, await answer.text()

    async def explained(self, number: int, prompt: str = "x") -> Any:
        url = f"http://127.0.0.1:{self.ports[number]}/admin/explain"
        async with self.http.post(url, json=body(prompt)) as answer:
            return await answer.json() if answer.status == 200 else {"candidates": []}

    async def explained_until(
        self, number: int, true: Callable[[Any], Any], within_s: float = 3.0, prompt: str = "x"
    ) -> None:
        deadline = time.monotonic() + within_s
        seen = None
        while time.monotonic() < deadline:
            try:
                seen = await self.explained(number, prompt)
            except aiohttp.ClientConnectionError:
                seen = {"candidates": []}
            if true(seen):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(seen)


def body(prompt: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": prompt}]}


async def ended(router: asyncio.subprocess.Process) -> None:
    if router.returncode is None:
        router.kill()
    await router.wait()


def requests(seen: Any) -> float:
    return float(sum(one["inputs"]["requests"] for one in seen["candidates"]))


def cached(seen: Any) -> list[float]:
    return sorted(one["inputs"]["cached_bytes"] for one in seen["candidates"])


@pytest.mark.e2e
@pytest.mark.world
async def test_three_routers_follow_each_others_placements_through_kill_and_stop(tmp_path: Path) -> None:
    prompt = "once upon a time " * 500
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)))
        fleet = Fleet(tmp_path, session)
        await fleet.start(stack)
        await asyncio.sleep(1.5)  # all hear all
        await fleet.ask(0, prompt)
        for number in (1, 2):
            await fleet.explained_until(number, lambda seen: cached(seen)[1] > 8000, 1.0, prompt)
            assert cached(await fleet.explained(number, prompt))[0] == 0
        first = [len([call for call in one.calls if call.line.startswith(b"POST")]) for one in fleet.replicas]
        await fleet.ask(1, prompt)
        await fleet.ask(2, prompt)
        after = [len([call for call in one.calls if call.line.startswith(b"POST")]) for one in fleet.replicas]
        assert sorted(after) == [0, 3]
        assert after.index(3) == first.index(1)

        fleet.released.clear()
        held: list[Awaitable[None]] = [asyncio.ensure_future(fleet.ask(number, "short")) for number in (0, 0, 2)]
        await fleet.explained_until(1, lambda seen: requests(seen) == 3)
        with frozen(fleet.routers[2].pid):
            await fleet.explained_until(1, lambda seen: requests(seen) == 2)
        await fleet.explained_until(1, lambda seen: requests(seen) == 3)
        fleet.routers[0].kill()
        await fleet.explained_until(1, lambda seen: requests(seen) == 1)
        fleet.released.set()
        await fleet.ask(1, "still here")
        await fleet.explained_until(1, lambda seen: requests(seen) == 0)
        await asyncio.gather(*held)  # a killed router's worker finishes what it has
    assert "peer.not_heard" in (tmp_path / f"{fleet.ports[1]}.log").read_text()


@pytest.mark.e2e
async def test_a_router_that_is_to_share_without_a_token_says_so_and_ends(tmp_path: Path) -> None:
    router = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "--port", str(free_port()), "--share-port", str(free_port())),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(router.communicate(), 30)
    assert router.returncode == 78
    assert b"share_token_file" in said
