"""A replica's connection, and the pool of idle ones per endpoint.

A connection serves one request at a time, frames its response, and hands the bytes on as they came. It returns to the pool
only when the response ended exactly where its framing says, and the whole request has been written.
"""

import asyncio
import contextlib
from collections.abc import Callable
from enum import Enum
from typing import Final, cast

from router.dispatch import CLOSED, MALFORMED, SPOKE_TLS, TRUNCATED, Failure
from router.model import Endpoint
from router.proxy.chunked import LAST_CHUNK, BadChunk, Chunked
from router.proxy.head import HEAD_LIMIT_BYTES, BadHead, ResponseHead
from router.proxy.headers import response_lines, without_credentials
from router.proxy.heads import Heads
from router.proxy.parsing import parse_response
from router.proxy.paths import upstream_path
from router.proxy.reach import TLS_ALERT
from router.proxy.sides import ProxiedRequest, ResponseListener

IDLE_LIMIT_S: Final = 4.0
"""Below the common 5 s keep-alive of servers (docs/faults.md F3)."""
IDLE_COUNT_LIMIT: Final = 512
"""Idle connections kept per endpoint."""
INFORMATIONAL_LIMIT: Final = 8
"""1xx answers swallowed before the real one."""


class _Framing(Enum):
    IDLE = 0
    HEAD = 1
    LENGTH = 2
    CHUNKED = 3
    CLOSE = 4


class Upstream:
    """One connection to one endpoint: an `asyncio.Protocol` in all but its base, which would keep it from being compiled."""

    __slots__ = (
        "_attempt",
        "_buffer",
        "_chunked",
        "_head",
        "_informational",
        "_paused",
        "_phase",
        "_pool",
        "_raw_chunks",
        "_remaining",
        "_to_head_request",
        "idle_since",
        "owes",
        "reused",
        "transport",
    )

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._attempt: ResponseListener | None = None
        self._phase = _Framing.IDLE
        self._buffer = b""
        self._head: ResponseHead | None = None
        self._chunked = Chunked()
        self._remaining = 0
        self._informational = 0
        self._paused = False
        self._raw_chunks = True
        self._to_head_request = False
        self.idle_since = 0.0
        self.owes = False
        """The request is not whole: an answer to it ends the connection."""
        self.reused = False
        self.transport: asyncio.Transport | None = None

    def __repr__(self) -> str:
        """For debugging."""
        state = "closed" if self.transport is None else self._phase.name.lower()
        return f"<Upstream {self._pool.endpoint.name} {state}{' reused' if self.reused else ''}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def send(
        self, attempt: ResponseListener, request: bytes, body: bytes, *, to_head_request: bool, raw_chunks: bool
    ) -> None:
        """Write a request and listen for `attempt`. `raw_chunks` False hands out payload only (HTTP/1.0 clients)."""
        self._attempt = attempt
        self._phase = _Framing.HEAD
        self._informational = 0
        self._to_head_request = to_head_request
        self._raw_chunks = raw_chunks
        transport = self.transport
        if transport is None:
            self._close_early()
        elif len(body) < 65536:  # noqa: PLR2004 - below it one copy is cheaper than a second write
            transport.write(request + body)
        else:
            transport.write(request)
            transport.write(body)

    def set_paused(self, *, paused: bool) -> None:
        """Stop reading while the client cannot take more."""
        transport = self.transport
        if transport is not None and paused != self._paused:
            self._paused = paused
            if paused:
                transport.pause_reading()
            else:
                transport.resume_reading()

    def abort(self) -> None:
        """Drop the connection at once; its attempt hears nothing more."""
        self._attempt = None
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the replica."""
        attempt = self._attempt
        if attempt is None:
            self.abort()  # nobody asked: never hand it to the next client (U17)
            return
        phase = self._phase
        try:
            if phase is _Framing.CHUNKED:
                # Most reads of a stream are whole chunks in the middle of it.
                if self._raw_chunks and self._chunked.passes_whole(data):
                    if not self._chunked.ended:
                        attempt.on_body(data, framed=True)
                        return
                    self._last_chunks(attempt, data)
                else:
                    self._pieces_of_chunks(attempt, data)
            elif phase is _Framing.LENGTH:
                self._length_data(attempt, data)
            elif phase is _Framing.CLOSE:
                attempt.on_body(data, framed=False)
            else:
                self._head_data(attempt, data)
        except (BadHead, BadChunk):
            self._fail(MALFORMED)

    def pause_writing(self) -> None:
        """asyncio: the replica takes bytes more slowly than we have them."""
        if self._attempt is not None:
            self._attempt.on_write_paused(paused=True)

    def resume_writing(self) -> None:
        """asyncio: it has caught up."""
        if self._attempt is not None:
            self._attempt.on_write_paused(paused=False)

    def write(self, data: bytes) -> None:
        """Bytes for the replica: of the request's rest, or after it switched to another protocol."""
        if self.transport is not None:
            self.transport.write(data)

    def eof_received(self) -> bool:
        """asyncio: the replica closed its side; we close ours."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio: the connection is gone."""
        self.transport = None
        self._pool.discard(self)
        if self._attempt is None:
            return
        if self._phase is _Framing.CLOSE and error is None:
            attempt, self._attempt = self._attempt, None
            attempt.on_end()
        elif self._phase is _Framing.HEAD and not self._buffer:
            self._close_early()
        elif self._phase is _Framing.HEAD and self._buffer.startswith(TLS_ALERT):
            self._fail(SPOKE_TLS)
        else:
            self._fail(TRUNCATED)

    def _head_data(self, attempt: ResponseListener, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > HEAD_LIMIT_BYTES:
                raise BadHead("the response head is too long")
            self._buffer = data
            return
        self._buffer = b""
        raw = data[: end + 4]
        if self._to_head_request:
            head = parse_response(raw, to_head_request=True)
            head.lines = response_lines(head)
        else:
            head = self._pool.heads.read(raw)
        rest = data[end + 4 :]
        if head.status < 200:  # noqa: PLR2004 - informational: swallowed (D12)
            self._interim(attempt, head, rest)
            return
        self._expect_body(head)
        if head.length == len(rest) and not head.is_event_stream:
            self._whole(attempt, head, rest)
            return
        attempt.on_head(head)
        if self._attempt is attempt and (rest or head.length == 0):  # else it chose to try elsewhere
            self.data_received(rest)

    def _interim(self, attempt: ResponseListener, head: ResponseHead, rest: bytes) -> None:
        """Wait for the answer itself; after a switch of protocols pass on all that comes, to the connection's end."""
        if head.status != 101:  # noqa: PLR2004 - as HTTP has it
            self._informational += 1
            if self._informational > INFORMATIONAL_LIMIT:
                raise BadHead("too many informational answers")
            if rest:
                self._head_data(attempt, rest)
            return
        if not attempt.on_switch(head):
            raise BadHead("a switch of protocols that was not asked for")
        self._phase = _Framing.CLOSE
        if rest and self._attempt is attempt:
            attempt.on_body(rest, framed=False)

    def _whole(self, attempt: ResponseListener, head: ResponseHead, body: bytes) -> None:
        """Head and body came in one read, as most short answers do."""
        self._attempt = None
        self._phase = _Framing.IDLE
        transport = self.transport
        if transport is not None:
            if head.keep_alive and not (self.owes or transport.get_write_buffer_size()):
                self._pool.give_back(self)
            else:
                transport.close()
        attempt.on_whole(head, body)

    def _expect_body(self, head: ResponseHead) -> None:
        self._head = head
        if head.chunked:
            self._phase = _Framing.CHUNKED
            self._chunked = Chunked()
        elif head.length is not None:
            self._phase = _Framing.LENGTH
            self._remaining = head.length
        else:
            self._phase = _Framing.CLOSE

    def _length_data(self, attempt: ResponseListener, data: bytes) -> None:
        remaining = self._remaining - len(data)
        if remaining > 0:
            self._remaining = remaining
            attempt.on_body(data, framed=False)
            return
        if remaining < 0:
            data = data[:remaining]
        if data:
            attempt.on_body(data, framed=False)
        self._end(clean=remaining == 0)

    def _last_chunks(self, attempt: ResponseListener, data: bytes) -> None:
        """The end came with whole chunks: they pass, the closing one is written by whoever ends the response."""
        data = data[: -len(LAST_CHUNK)]
        if data:
            attempt.on_body(data, framed=True)
        self._end(clean=True)

    def _pieces_of_chunks(self, attempt: ResponseListener, data: bytes) -> None:
        chunked = self._chunked
        for piece in chunked.payload(data):
            attempt.on_body(piece, framed=False)
        if chunked.ended:
            self._end(clean=not chunked.surplus)

    def _end(self, *, clean: bool) -> None:
        attempt, self._attempt = self._attempt, None
        self._phase = _Framing.IDLE
        transport, head = self.transport, self._head
        if transport is not None:
            kept = clean and head is not None and head.keep_alive and not self.owes
            if kept and not transport.get_write_buffer_size():
                self._pool.give_back(self)
            else:
                transport.close()
        if attempt is not None:
            attempt.on_end()

    def _close_early(self) -> None:
        """No byte of a response came: as it happens where the server's keep-alive ran out while we wrote."""
        if not self.reused:
            self._fail(CLOSED)
            return
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.on_stale()

    def _fail(self, failure: Failure) -> None:
        attempt, self._attempt = self._attempt, None
        if self.transport is not None:
            self.transport.abort()
        if attempt is not None:
            attempt.on_failed(failure)


class Pool:
    """Idle connections to one endpoint, the latest used first.

    Args:
        endpoint: Whose connections.
        clock: Monotonic seconds.
        heads: Memory of response heads.
    """

    __slots__ = ("_clock", "_idle", "_over", "address", "base_path", "endpoint", "has_key", "heads", "own_lines")

    def __init__(self, endpoint: Endpoint, clock: Callable[[], float], heads: Heads[ResponseHead]) -> None:
        self.endpoint = endpoint
        self.heads = heads
        self.own_lines = b"host: %b\r\n" % endpoint.authority.encode()
        self.base_path = endpoint.base_path.encode()
        self.has_key = endpoint.authorization is not None
        if endpoint.authorization is not None:
            self.own_lines += b"authorization: %b\r\n" % endpoint.authorization.encode()
        self._clock = clock
        self._idle: list[Upstream] = []
        self._over = False
        self.address = ""
        """Where the latest connection was had, when the host has several addresses."""

    def __repr__(self) -> str:
        """For debugging."""
        return f"<Pool {self.endpoint.name} idle={len(self._idle)}{' over' if self._over else ''}>"

    def request(self, request: ProxiedRequest, api_prefix: str | None) -> bytes:
        """The request's head as the endpoint gets it; `api_prefix`: which form of paths it serves."""
        head, forwarded = request.sent_head, request.forwarded_lines()
        length = len(request.sent_body) + request.rest_bytes
        return b"%b %b%b%b HTTP/1.1\r\n%b%b%bx-request-id: %b\r\n%b\r\n" % (
            head.method,
            self.base_path,
            upstream_path(head.path, head.operation, api_prefix),
            b"?" + head.query if head.query else b"",
            self.own_lines,
            without_credentials(forwarded) if self.has_key else forwarded,
            request.peer_line,
            request.request_id,
            b"content-length: %d\r\n" % length if length or head.method == b"POST" else b"",
        )

    def take(self) -> Upstream | None:
        """An idle connection young enough to be trusted, or None."""
        while self._idle:
            connection = self._idle.pop()
            transport = connection.transport
            if transport is None or transport.is_closing():
                continue
            if self._clock() - connection.idle_since > IDLE_LIMIT_S:
                transport.close()
                continue
            connection.reused = True
            return connection
        return None

    def give_back(self, connection: Upstream) -> None:
        """Keep a connection whose response is complete."""
        connection.set_paused(paused=False)
        connection.idle_since = self._clock()
        if self._over or len(self._idle) >= IDLE_COUNT_LIMIT:
            connection.abort()
        else:
            self._idle.append(connection)

    def discard(self, connection: Upstream) -> None:
        """Forget a connection that is gone."""
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    def prune(self) -> None:
        """Close what has been idle too long."""
        oldest_allowed = self._clock() - IDLE_LIMIT_S
        while self._idle and self._idle[0].idle_since < oldest_allowed:
            connection = self._idle.pop(0)
            if connection.transport is not None:
                connection.transport.close()

    def end(self) -> None:
        """The endpoint is gone: close every connection, busy ones after their answer."""
        self._over = True
        self.close()

    def close(self) -> None:
        """Close every idle connection."""
        idle, self._idle = self._idle, []
        for connection in idle:
            if connection.transport is not None:
                connection.transport.close()
