"""Clients that never ask twice: what of a router's rolls costs them anything.

Each has one connection and closes it only when it is told to (`Connection: close`), as RFC 9112 9.6 has it. Everything else
that keeps it from a whole answer is an error.
"""

import asyncio
import json
import ssl
from dataclasses import dataclass, field

from tests.router.fakes import Call, plain

WHOLE_STREAM_EVENTS = 5


def ask(model: str, *, stream: bool) -> bytes:
    """A chat, as it goes over the wire."""
    body = json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi"}]}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def answer(call: Call) -> None:
    """What the replica says: short answers, and streams that last a moment."""
    if call.line.startswith(b"GET"):
        await call.send(plain(b'{"object":"list","data":[{"id":"m"}]}'))
    elif b'"stream": true' not in call.body:
        await call.send(plain(b'{"ok":1}'))
    else:
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(WHOLE_STREAM_EVENTS - 1):
            await call.send(_event(b'data: {"t":1}\n\n'))
            await asyncio.sleep(0.02)
        await call.send(_event(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def _event(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass
class Tally:
    """What the clients of a storm met."""

    answered: int = 0
    connections: int = 0
    told: int = 0
    """Answers that said that the connection closes."""
    errors: list[str] = field(default_factory=list)


class Client:
    """One connection after the other.

    Args:
        port: The router's.
        tally: Of all clients.
        pause_s: Between an answer and the next request.
        stream_each: Every so-manieth request is a stream; 0 for none.
        tls: What the router is checked with; None: plain HTTP.
        keeps: Ask again by the same connection, until told that it closes.
    """

    def __init__(
        self,
        port: int,
        tally: Tally,
        *,
        pause_s: float = 0.0,
        stream_each: int = 0,
        tls: ssl.SSLContext | None = None,
        keeps: bool = True,
    ) -> None:
        self._port = port
        self._tls = tls
        self._keeps = keeps
        self._tally = tally
        self._pause_s = pause_s
        self._stream_each = stream_each
        self.leaves = False
        self.leaves_when_told = False

    async def run(self, requests: int | None = None) -> None:
        """Ask, for ever or so often."""
        reader: asyncio.StreamReader | None = None
        asked = 0
        while not self.leaves and (requests is None or asked < requests):
            asked += 1
            stream = self._stream_each > 0 and asked % self._stream_each == 0
            try:
                if reader is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._tls)
                    self._tally.connections += 1
                writer.write(ask("m", stream=stream))
                async with asyncio.timeout(60):
                    closes = await self._read(reader, stream=stream)
                self._tally.answered += 1
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                self._tally.errors.append(f"request {asked}: {error!r}")
                closes = True
            if closes and self.leaves_when_told:
                self.leaves = True
            closes = closes or not self._keeps
            if closes and reader is not None:
                writer.close()
                reader = None
            await asyncio.sleep(self._pause_s)
        if reader is not None:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, *, stream: bool) -> bool:
        """Read an answer; True when it says that the connection closes."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise ValueError(head.decode())
        if stream:
            body = await reader.readuntil(b"\r\n0\r\n\r\n")
            if body.count(b"data: ") != WHOLE_STREAM_EVENTS:
                raise ValueError(body.decode())
        else:
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        closes = b"connection: close" in head
        self._tally.told += closes
        return closes
