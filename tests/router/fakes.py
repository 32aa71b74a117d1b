"""A replica whose every byte the test decides, and a data plane inside the test's own event loop."""

import asyncio
import os
import random
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, cast

from common.tasks import TaskScope
from common.wire.leases import LeaseRows
from router.counters import Shape, SharedCounters
from router.feed import Grants
from router.lending import Lending
from router.model import Endpoint, Table
from router.policy.choose import Chooser
from router.policy.models import ModelRules
from router.proxy.downstream import Downstream
from router.proxy.engine import Engine
from router.proxy.limits import Limits

SLOTS = 16
LIMITS = Limits(
    connect_timeout_s=1.0,
    first_byte_timeout_s=5.0,
    idle_timeout_s=5.0,
    total_timeout_s=20.0,
    max_retries=2,
    max_body_bytes=1 << 20,
    max_bodies_bytes=8 << 20,
    max_connections=256,
    any_path=False,
    extra_paths=frozenset(),
)


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a RST; `abort()` alone sends a FIN."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@dataclass
class Call:
    """One request as a replica got it, and the way to answer it."""

    head: bytes
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    def header(self, name: str) -> str | None:
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name:
                return value.strip()
        return None

    async def send(self, data: bytes) -> None:
        if self.writer.is_closing():
            raise ConnectionResetError  # uvloop raises RuntimeError there, as for a mistake of ours
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        reset(self.writer)

    async def until_gone(self) -> None:
        """Wait until the router closes the connection."""
        while await self.reader.read(65536):
            pass


Script = Callable[[Call], Awaitable[None]]


def plain(body: bytes, *, status: bytes = b"200 OK", kind: bytes = b"application/json", extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status, kind, extra, len(body), body)


SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def event(text: str) -> bytes:
    data = f'data: {{"t":"{text}"}}\n\n'.encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


class Endless:
    """A stream of one event that does not end; `gone` once the router has left it."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        await call.send(SSE_HEAD + event("a"))
        await call.until_gone()
        self.gone.set()


class Flood:
    """An answer of 64 MiB, of which so much was `sent`, as fast as it is taken."""

    size = 64 << 20

    def __init__(self) -> None:
        self.sent = 0

    async def __call__(self, call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: audio/wav\r\ncontent-length: %d\r\n\r\n" % self.size)
        while self.sent < self.size:
            await call.send(bytes(1 << 16))
            self.sent += 1 << 16

    async def stands_still(self) -> None:
        """Wait until nobody takes more."""
        before = -1
        while before != self.sent:
            before = self.sent
            await asyncio.sleep(0.5)


class FakeReplica:
    """An HTTP server of raw bytes; `script` answers each request."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[Call] = []
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> "FakeReplica":
        self._server = await asyncio.start_server(self._serve, address, 0, ssl=tls, backlog=1024)
        return self

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line[15:])
                call = Call(head, await reader.readexactly(length), reader, writer)
                self.calls.append(call)
                await self.script(call)
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._open.discard(writer)
            writer.close()


@dataclass
class Reply:
    """What a client got: the head, the raw rest, and whether the connection was closed."""

    raw: bytes
    closed: bool

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    @property
    def head(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    def header(self, name: str) -> str | None:
        return Call(self.head, b"", None, None).header(name)  # type: ignore[arg-type]  # only the head is read


@dataclass
class Plane:
    """A data plane that listens on a free port."""

    engine: Engine
    server: asyncio.Server
    replicas: list[FakeReplica] = field(default_factory=list)
    _version: int = 0

    @property
    def port(self) -> int:
        return int(self.server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close everything, and check that nothing was left behind."""
        self.server.close()
        self.engine.abort_all()
        for client in list(self.engine.clients):
            client.abort()
        for replica in self.replicas:
            await replica.stop()
        self.route()
        for _ in range(200):
            if not self.engine.clients and not self.engine.exchanges:
                break
            await asyncio.sleep(0.01)
        assert not self.engine.exchanges
        assert self.in_flight() == 0
        assert self.engine.body_bytes == 0

    async def add(self, script: Script) -> FakeReplica:
        replica = await FakeReplica(script).start()
        self.replicas.append(replica)
        return replica

    def route(self, *replicas: FakeReplica | int, models: tuple[str, ...] = ("m",), **more: object) -> list[Endpoint]:
        """Make `replicas` (or bare ports) the whole table."""
        endpoints = [
            replace(
                Endpoint(
                    id=f"r{slot}@{_port(replica)}",
                    name=f"r{slot}",
                    host="127.0.0.1",
                    port=_port(replica),
                    slot=slot,
                    models=models,
                ),
                **more,  # type: ignore[arg-type]  # the test names real fields
            )
            for slot, replica in enumerate(replicas)
        ]
        self._version += 1
        self.engine.set_table(Table.of(self._version, tuple(endpoints)))
        return endpoints

    def in_flight(self) -> int:
        return sum(self.engine.counters.total(slot, 0) for slot in range(SLOTS + 1))

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self, raw: bytes, *, wait_s: float = 5.0, until_close: bool = False) -> Reply:
        """Send bytes on a new connection; return the first whole reply (or all until the close)."""
        reader, writer = await self.open()
        try:
            writer.write(raw)
            return await read_reply(reader, wait_s=wait_s, until_close=until_close)
        finally:
            writer.close()

    async def post(self, body: bytes, path: str = "/v1/chat/completions", headers: str = "") -> Reply:
        return await self.send(request(body, path, headers), until_close=True)


def _port(replica: FakeReplica | int) -> int:
    return replica if isinstance(replica, int) else replica.port


def request(body: bytes, path: str = "/v1/chat/completions", headers: str = "connection: close\r\n") -> bytes:
    if "connection" not in headers.lower():
        headers += "connection: close\r\n"
    return (
        f"POST {path} HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\n{headers}"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


async def read_reply(reader: asyncio.StreamReader, *, wait_s: float = 5.0, until_close: bool = False) -> Reply:
    raw = b""
    try:
        async with asyncio.timeout(wait_s):
            while True:
                data = await reader.read(65536)
                raw += data
                if not data:
                    return Reply(raw, closed=True)
                if not until_close and _whole(raw):
                    return Reply(raw, closed=False)
    except (TimeoutError, ConnectionError) as error:
        return Reply(raw, closed=isinstance(error, ConnectionError))


def _whole(raw: bytes) -> bool:
    head, separator, body = raw.partition(b"\r\n\r\n")
    if not separator:
        return False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line[15:])
    return body.endswith(b"0\r\n\r\n")


async def make_plane(limits: Limits, scope: TaskScope, control: Path, rules: ModelRules | None = None) -> Plane:
    shape = Shape(SLOTS, 1)
    descriptor = SharedCounters.create(shape)
    counters = SharedCounters(descriptor, shape)
    engine = Engine(
        limits=limits,
        counters=counters,
        chooser=Chooser(rng=random.Random(1), in_flight=lambda endpoint: counters.total(endpoint.slot, 0), rules=rules),
        control=Endpoint(id="control", name="control", host="r", port=0, slot=SLOTS, unix_path=str(control)),
        scope=scope,
    )
    os.close(descriptor)
    _lend(engine)
    scope.spawn("sweep", engine.sweep(), service=True)
    server = await asyncio.get_running_loop().create_server(lambda: cast("Any", Downstream(engine)), "127.0.0.1", 0)
    return Plane(engine, server)


def _lend(engine: Engine) -> None:
    """Have a master of its own lend it the limits of its keys."""
    lending, loop = Lending(fails_closed=False), asyncio.get_running_loop()

    def take(grants: Grants) -> None:
        loop.call_soon(lambda: engine.budgets.take(grants.grants, closed=grants.closed))

    def ask(rows: LeaseRows) -> None:
        lending.set_keys(tuple(engine.keys.keys.values()), ())
        lending.heard("worker", rows, take)

    engine.budgets.ask, engine.budgets.soon = ask, loop.call_soon
