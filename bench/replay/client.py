"""Sends a trace, every request at its time whatever became of those before it, over connections that stay open."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from bench.replay.mock import MODEL
from bench.replay.traces import Request, prompt

LATE_S = 300.0


@dataclass(slots=True)
class Sent:
    """How the sending went."""

    faults: int = 0
    first_fault: str = ""
    lag_s: list[float] = field(default_factory=list)
    """How late each request was sent, in real seconds: more than a few hundredths, and the client was too slow."""


class _Connection(asyncio.Protocol):
    def __init__(self, idle: list["_Connection"]) -> None:
        self._idle = idle
        self._over: asyncio.Future[str] | None = None
        self._transport: asyncio.Transport | None = None
        self._begin = self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def ask(self, raw: bytes) -> asyncio.Future[str]:
        assert self._transport is not None  # noqa: S101 - a connection in the list is open
        self._begin = self._tail = b""
        self._over = asyncio.get_running_loop().create_future()
        self._transport.write(raw)
        return self._over

    def data_received(self, data: bytes) -> None:
        self._begin = self._begin or data[:64]
        self._tail = (self._tail + data)[-64:]
        if self._over is None or self._over.done():
            return
        if not self._begin.startswith(b"HTTP/1.1 200"):
            self._over.set_result(self._begin.decode("latin-1"))
            self.close()
        elif self._tail.endswith(b"0\r\n\r\n"):
            self._over.set_result("" if b"[DONE]" in self._tail else "an end without [DONE]")
            self._idle.append(self)

    def connection_lost(self, _error: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        if self._over is not None and not self._over.done():
            self._over.set_result("connection lost")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def raw_request(request: Request, bytes_per_token: float, due: float | None = None) -> bytes:
    """One chat completion, as bytes; `due`: when it is sent, on the monotonic clock, for the mock that answers it."""
    body = json.dumps(
        {
            **({} if due is None else {"user": f"{due:.6f}"}),
            "model": MODEL,
            "stream": True,
            "max_tokens": request.output_tokens,
            "messages": [{"role": "user", "content": prompt(request, bytes_per_token)}],
        }
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def send(
    port: int,
    requests: Sequence[Request],
    *,
    speed: float,
    bytes_per_token: float,
    at: Sequence[tuple[float, Callable[[], None]]] = (),
) -> Sent:
    """Send `requests` to a router; `at` are things to do at a second of the trace."""
    loop = asyncio.get_running_loop()
    idle: list[_Connection] = []
    sent = Sent()
    asked: set[asyncio.Task[None]] = set()
    began = loop.time()
    for second, action in at:
        loop.call_later(second / speed, action)

    async def one(raw: bytes) -> None:
        if idle:
            connection = idle.pop()
        else:
            _, connection = await loop.create_connection(lambda: _Connection(idle), "127.0.0.1", port)
        said = await connection.ask(raw)
        if said:
            sent.faults += 1
            sent.first_fault = sent.first_fault or said

    for request in requests:
        due = began + request.at_s / speed
        raw = raw_request(request, bytes_per_token, due)
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
        sent.lag_s.append(loop.time() - due)
        task = asyncio.create_task(one(raw))
        asked.add(task)
        task.add_done_callback(asked.discard)
    if asked:
        _, late = await asyncio.wait(asked, timeout=LATE_S)
        sent.faults += len(late)
        for task in late:
            task.cancel()
    for connection in idle:
        connection.close()
    return sent
