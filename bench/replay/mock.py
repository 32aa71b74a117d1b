"""Several model engines behind HTTP, in one process: `python -m bench.replay.mock SPEC`, SPEC in JSON (see `serve`).

Every replica answers chat completions as a stream: the head at once, as Python's engines do, the first event when the model engine has read the prompt, its last one
when all tokens are written. Like a real engine, it cuts the prompt it gets into blocks and knows nothing else of the
trace. `GET /figures` gives what happened to every request since the last time; any other GET answers with the one model.
"""

import asyncio
import contextlib
import json
import sys
from functools import partial
from typing import Any, cast

import msgspec
import uvloop
import xxhash

from bench.replay.model_engine import Kind, ModelEngine
from bench.replay.traces import BLOCK_TOKENS, Request

MODEL = "m"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_FIRST = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
_DONE = b"data: [DONE]\n\n"


class _Message(msgspec.Struct):
    content: str


class _Body(msgspec.Struct):
    messages: list[_Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    """The same by its newer name, which sglang-router puts in the place of the older one."""
    user: str = ""
    """When it was sent, on the monotonic clock."""


_decode = msgspec.json.Decoder(_Body).decode


class Replica:
    """One engine and what it did.

    Args:
        kind: What it can do.
        speed: Seconds of the trace in one of the clock's.
        bytes_per_token: Of the prompts' text.
        reports: Whether it tells `cached_tokens`.
    """

    def __init__(self, kind: Kind, *, speed: float, bytes_per_token: float, reports: bool) -> None:
        self.kind = kind
        self.engine = ModelEngine(kind)
        self.speed = speed
        self.reports = reports
        self.loop = asyncio.get_running_loop()
        self.figures: list[tuple[float, int, int]] = []
        self.written_tokens = 0
        self._bytes_per_token = bytes_per_token
        self._block_bytes = int(BLOCK_TOKENS * bytes_per_token)

    def ask(self, raw: bytes) -> tuple[float, float, bytes]:
        """Take a request; returns the seconds until its first and its last event, and the last one."""
        body = _decode(raw)
        text = body.messages[0].content.encode()
        blocks, chained = [], 0
        for start in range(0, len(text), self._block_bytes):
            chained = xxhash.xxh3_64_intdigest(text[start : start + self._block_bytes], chained)
            blocks.append(chained)
        tokens = max(1, round(len(text) / self._bytes_per_token))
        at_s = self.loop.time() * self.speed
        written = body.max_tokens or body.max_completion_tokens or 1
        self.written_tokens += written
        served = self.engine.serve(Request(at_s, tokens, written, tuple(blocks)), at_s)
        sent_s = float(body.user) * self.speed if body.user else at_s
        self.figures.append((served.first_s - sent_s, served.hit_blocks, len(blocks)))
        usage: dict[str, Any] = {"prompt_tokens": tokens, "completion_tokens": written}
        if self.reports:
            usage["prompt_tokens_details"] = {"cached_tokens": tokens - served.uncached_tokens}
        last = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n" + _DONE
        return (served.first_s - at_s) / self.speed, (served.end_s - at_s) / self.speed, last

    def take_figures(self) -> bytes:
        """What happened since the last call; the cache is emptied and all is forgotten."""
        said = {
            "read_tokens": self.engine.read_tokens,
            "written_tokens": self.written_tokens,
            "requests": self.figures,
        }
        self.figures = []
        self.written_tokens = 0
        self.engine = ModelEngine(self.kind)
        return json.dumps(said).encode()


class Connection(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self._missing = 0
        self._timers: list[asyncio.TimerHandle] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: somebody connected."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def connection_lost(self, _error: Exception | None) -> None:
        """asyncio: gone."""
        for timer in self._timers:
            timer.cancel()

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes of a request."""
        self._pieces.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return
        raw = b"".join(self._pieces)
        head, found, body = raw.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if not found or len(body) < length:
            self._pieces = [raw]
            self._missing = length - len(body) if found else 0
            return
        self._pieces, self._missing = [], 0
        self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"POST"):
            first_s, end_s, last = self._replica.ask(body)
            later = self._replica.loop.call_later
            self._write(_HEAD)
            self._timers = [
                later(first_s, self._write, _chunk(_FIRST)),
                later(end_s, self._write, _chunk(last) + b"0\r\n\r\n"),
            ]
            return
        if head.startswith(b"GET /figures "):
            said = self._replica.take_figures()
        else:
            said = b'{"object":"list","data":[{"id":"%b","object":"model"}]}' % MODEL.encode()
        self._write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(said) + said
        )

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve(spec: dict[str, Any]) -> None:
    """Listen on `spec["replicas"]` (each `port` and the fields of `Kind`) until cancelled."""
    loop = asyncio.get_running_loop()
    servers = []
    for entry in spec["replicas"]:
        port = entry.pop("port")
        replica = Replica(
            Kind(**entry), speed=spec["speed"], bytes_per_token=spec["bytes_per_token"], reports=spec["reports"]
        )
        servers.append(await loop.create_server(partial(Connection, replica), "127.0.0.1", port))
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(json.loads(sys.argv[1])))
