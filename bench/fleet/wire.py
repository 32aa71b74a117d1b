"""A cheap stand-in for aiohttp's client session, so that ten thousand clients cost less than the servers they measure.

`common.discovery.RegistryClient` runs over it unchanged. Heads are those that aiohttp writes, and idle connections are dropped
after as long as a babysitter's: in the field many a heartbeat opens a connection, and the registry pays for that.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from errno import EINPROGRESS
from types import TracebackType
from typing import Any, ClassVar, cast
from urllib.parse import urlsplit

import aiohttp
import msgspec

from common.http.client import KEEPALIVE_S

BIND_ADDRESS_NO_PORT = 24
"""Linux's `IP_BIND_ADDRESS_NO_PORT`, which `socket` has no name for."""
MOST_A_TURN = 256
"""Connections that a turn of the loop takes at a port; uvloop takes one."""
BACKLOG = 2048
Answerer = Callable[[str, int, str, str, bytes], tuple[int, bytes]]
_PLACES: dict[str, tuple[str, int, str]] = {}


class _Connection(asyncio.Protocol):
    """One connection; one request at a time, and answers that have a Content-Length."""

    def __init__(self, idle: list["_Connection"]) -> None:
        self.idle = idle
        self.transport: asyncio.Transport
        self.received = b""
        self.waiter: asyncio.Future[tuple[int, bytes]] | None = None
        self.drop: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none of asyncio's classes

    def data_received(self, data: bytes) -> None:
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.received[:end].lower()
        length = int(head[head.index(b"content-length:") + 15 :].split(b"\r\n", 1)[0])
        if len(self.received) < end + 4 + length or self.waiter is None:
            return
        answer, self.received = (int(head[9:12]), self.received[end + 4 : end + 4 + length]), b""
        if b"connection: close" in head:
            self.transport.close()
        if not self.waiter.done():
            self.waiter.set_result(answer)

    def connection_lost(self, _error: Exception | None) -> None:
        if self in self.idle:
            self.idle.remove(self)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(aiohttp.ServerDisconnectedError())

    async def ask(self, raw: bytes) -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        if self.drop is not None:
            self.drop.cancel()
        self.waiter = loop.create_future()
        self.transport.write(raw)
        answer = await self.waiter
        if not self.transport.is_closing():
            self.idle.append(self)
            self.drop = loop.call_later(KEEPALIVE_S, self.transport.close)
        return answer


class _Content:
    def __init__(self, body: bytes) -> None:
        self._body = body

    async def iter_any(self) -> AsyncIterator[bytes]:
        yield self._body


class _Answer:
    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.content = _Content(body)


class _Call:
    def __init__(self, session: "Session", place: tuple[str, int], raw: bytes, timeout_s: float | None) -> None:
        self._session, self._place, self._raw, self._timeout_s = session, place, raw, timeout_s

    async def __aenter__(self) -> _Answer:
        async with asyncio.timeout(self._timeout_s):
            return _Answer(*await self._session.ask(self._place, self._raw))

    async def __aexit__(
        self, _t: type[BaseException] | None, _e: BaseException | None, _b: TracebackType | None
    ) -> None:
        return None


class Session:
    """What `RegistryClient` needs of a session, from an address of its own; `took` is told the seconds of each heartbeat."""

    def __init__(self, host: str, took: Callable[[float], None]) -> None:
        self._from = (host, 0)
        self._took = took
        self._idle: dict[tuple[str, int], list[_Connection]] = {}

    def request(
        self,
        method: str,
        url: str,
        *,
        data: bytes | None,
        headers: dict[str, str],
        timeout: aiohttp.ClientTimeout,
        allow_redirects: bool,  # noqa: ARG002 - none comes
    ) -> _Call:
        """As aiohttp's."""
        if url not in _PLACES:
            parts = urlsplit(url)
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            _PLACES[url] = parts.hostname or "", parts.port or 80, path
        host, port, path = _PLACES[url]
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{more}Accept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
            f"User-Agent: inference-svc/bench\r\nContent-Length: {len(data or b'')}\r\n\r\n"
        )
        return _Call(self, (host, port), head.encode() + (data or b""), timeout.total)

    async def ask(self, place: tuple[str, int], raw: bytes) -> tuple[int, bytes]:
        """One request, over an idle connection where there is one."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        idle = self._idle.setdefault(place, [])
        connection = None
        while idle and connection is None:
            candidate = idle.pop()
            connection = None if candidate.transport.is_closing() else candidate
        if connection is None:
            try:
                connection = await self._connect(place, idle)
            except OSError as error:
                raise aiohttp.ClientConnectionError(str(error)) from error
        try:
            answer = await connection.ask(raw)
        except asyncio.CancelledError:
            connection.transport.abort()
            raise
        if b"/heartbeat " in raw[:200]:
            self._took(loop.time() - began)
        return answer

    async def _connect(self, place: tuple[str, int], idle: list[_Connection]) -> _Connection:
        """A new connection. Its port is taken with both ends known: to look for one at a bind costs more than all the rest.

        Not by uvloop's `sock_connect`: it has a thread resolve each address, numbers too, and once more come than two of them
        do in the time that a client waits, none is ever connected.
        """
        loop = asyncio.get_running_loop()
        plug = socket.socket()
        try:
            plug.setblocking(False)  # noqa: FBT003 - its only argument
            plug.setsockopt(socket.IPPROTO_IP, BIND_ADDRESS_NO_PORT, 1)
            plug.bind(self._from)
            fault = plug.connect_ex(place)
            if fault == EINPROGRESS:
                await _writable(loop, plug)
                fault = plug.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if fault:
                raise OSError(fault, os.strerror(fault))
            _, connection = await loop.create_connection(lambda: _Connection(idle), sock=plug)
        except BaseException:
            plug.close()
            raise
        return connection

    def vanish(self) -> None:
        """The machine is gone: connections go without a word to be answered."""
        for connections in self._idle.values():
            for connection in list(connections):
                connection.transport.abort()


async def _writable(loop: asyncio.AbstractEventLoop, plug: socket.socket) -> None:
    ready = loop.create_future()
    loop.add_writer(plug, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_writer(plug)


class Listener(asyncio.Protocol):
    """Answers small JSON calls: `answer` takes local address, port, method, path and body. Who asks a dead node is cut off."""

    DEAD: ClassVar[set[str]] = set()
    OPEN: ClassVar[dict[str, set[asyncio.Transport]]] = {}

    @classmethod
    def kill(cls, host: str) -> None:
        """A node is no more."""
        cls.DEAD.add(host)
        for transport in list(cls.OPEN.get(host, ())):
            transport.abort()

    def __init__(self, answer: Answerer, received: bytes = b"") -> None:
        self._answer = answer
        self._received = received

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._here: tuple[str, int] = transport.get_extra_info("sockname")[:2]
        self.OPEN.setdefault(self._here[0], set()).add(self._transport)
        if self._here[0] in self.DEAD:
            self._transport.abort()
        elif self._received:
            self.data_received(b"")

    def connection_lost(self, _error: Exception | None) -> None:
        self.OPEN[self._here[0]].discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        told = _told(self._answer, self._here, self._received)
        if told is not None:
            self._transport.write(told)
            self._transport.close()


def _told(answer: Answerer, here: tuple[str, int], received: bytes) -> bytes | None:
    """What is answered to a whole request; the connection ends with it, since nobody asks again while it would last."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = received[:end]
    at = head.lower().find(b"content-length:")
    length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
    if len(received) < end + 4 + length:
        return None
    method, path = head.split(b" ", 2)[:2]
    status, content = answer(*here, method.decode(), path.decode(), received[end + 4 : end + 4 + length])
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(content),
        content,
    )


async def listen(port: int, answer: Answerer) -> None:
    """Listen on `port` at every address of the loopback interface, and of no other: each node has one of its own."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    listening.bind(("0.0.0.0", port))  # noqa: S104 - bound to the device lo
    listening.setblocking(False)  # noqa: FBT003 - its only argument
    listening.listen(BACKLOG)
    asyncio.get_running_loop().add_reader(listening, _Door(listening, answer).take)


class _Door:
    """Takes all who wait. Who asks at once is answered at once, without a transport: most are probes, and late ones pile up."""

    def __init__(self, listening: socket.socket, answer: Answerer) -> None:
        self._listening, self._answer = listening, answer
        self._entering: set[asyncio.Task[Any]] = set()

    def take(self) -> None:
        for _ in range(MOST_A_TURN):
            try:
                guest, _ = self._listening.accept()
            except (BlockingIOError, ConnectionError):
                return
            here: tuple[str, int] = guest.getsockname()
            guest.setblocking(False)  # noqa: FBT003 - its only argument
            try:
                raw = guest.recv(1 << 16)
            except BlockingIOError:
                self._enter(guest, b"")
                continue
            except ConnectionError:
                raw = b""  # gone, as one that gave up waiting
            told = _told(self._answer, here, raw) if raw and here[0] not in Listener.DEAD else b""
            if told is None:
                self._enter(guest, raw)
                continue
            with suppress(BlockingIOError, ConnectionError):
                guest.send(told)
            guest.close()

    def _enter(self, guest: socket.socket, raw: bytes) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(lambda: Listener(self._answer, raw), guest))
        self._entering.add(task)
        task.add_done_callback(self._entering.discard)


def encode(value: Any) -> bytes:
    """As JSON."""
    return msgspec.json.encode(value)
