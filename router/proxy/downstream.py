"""A client's connection: its requests are answered one after the other, each before the next is read.

Pipelined requests wait as bytes, up to a bound; above it the socket is not read. A request is handed on once its body is
whole. Heads and bodies have deadlines. A request that is wrong is answered once, and then the connection is closed.
"""

import asyncio
import fcntl
import sys
import termios
from typing import Final, cast

from router.proxy import answers
from router.proxy.engine import Engine
from router.proxy.exchange import Exchange
from router.proxy.head import RequestHead
from router.proxy.paths import dialect_of
from router.proxy.reading import Reading, RequestReader
from router.proxy.surviving import SurvivingExchange
from router.proxy.tunnel import WebSocketExchange
from router.proxy.upload import UploadExchange, beginning_of

PENDING_LIMIT_BYTES: Final = 65536
"""Of pipelined bytes kept while an answer is under way; above it the socket is not read."""
LINGER_S: Final = 2.0
"""How long the rest of a refused request is read and dropped, so that the client can read why."""


class Downstream(RequestReader):
    """One client connection: an `asyncio.Protocol` in all but its base, which would keep it from being compiled.

    Args:
        engine: The worker's shared state.
        kept: It comes from the worker before, idle.
    """

    __slots__ = (
        "_exchange",
        "_paused_at",
        "_reading_paused",
        "_served",
        "_transport",
    )

    def __init__(self, engine: Engine, *, kept: bool = False) -> None:
        super().__init__(engine)
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._paused_at: float | None = None
        self._reading_paused = False
        self._served = kept
        self.peer = "unknown"
        self.peer_line = b""

    # -- asyncio -----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client connected."""
        transport = self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]) if isinstance(name, tuple) else "local"
        self.peer_line = b"x-forwarded-for: %b\r\n" % self.peer.encode()
        engine = self._engine
        engine.clients.add(self)
        self._deadline = engine.now() + self._patience_s
        if len(engine.clients) > engine.limits.max_connections and not self._served:
            self.refuse(503, "too_many_connections", "the router has too many connections")

    def connection_lost(self, _error: Exception | None) -> None:
        """asyncio: the client is gone."""
        self._transport = None
        self._engine.clients.discard(self)
        self._release_body()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()

    def eof_received(self) -> bool:
        """asyncio: the client closed its side; so do we, and what it asked for is cancelled."""
        return False

    def pause_writing(self) -> None:
        """asyncio: the client reads slower than the replica writes."""
        self._paused_at = self._engine.now()
        if self._exchange is not None:
            self._exchange.set_paused(paused=True)

    def resume_writing(self) -> None:
        """asyncio: the client caught up."""
        self._paused_at = None
        if self._exchange is not None:
            self._exchange.set_paused(paused=False)
        else:
            self._go_on()

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the client."""
        if self._exchange is not None or (self.paused and self._reading is Reading.HEAD):
            if self._exchange is not None and self._exchange.takes_data:
                self._exchange.client_data(data)
                return
            self._buffer += data
            if len(self._buffer) > PENDING_LIMIT_BYTES and self._transport is not None:
                self._transport.pause_reading()
                self._reading_paused = True
        elif self._reading is not Reading.NOTHING:
            self._feed(data)

    # -- from the exchange and the engine ----------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """True while the client cannot take more."""
        return self._paused_at is not None

    def sink(self) -> asyncio.Transport:
        """Where the answer is written."""
        assert self._transport is not None  # noqa: S101 - an exchange ends when its client is lost
        return self._transport

    def exchange_done(self, *, keep_alive: bool) -> None:
        """The answer is written; go on with the next request, or close."""
        exchange = self._exchange
        owes = exchange is not None and exchange.takes_data and exchange.rest_bytes > 0
        self._exchange = None
        self._served = True
        engine = self._engine
        if self._transport is None:
            return
        if not keep_alive:
            if owes:
                self._linger(self._transport)
            else:
                self._close()
            return
        self._deadline = engine.now() + engine.limits.keepalive_s
        if engine.give is not None:
            asyncio.get_running_loop().call_soon(self.leave)  # by then what was written has left
        # While the client cannot take this answer's end, the next one is not begun: it would pile up behind it (D3).
        if not self.paused:
            self._go_on()

    def take_over(self) -> bytes:
        """From now on bytes go to the exchange as they come; returns those that came before."""
        data, self._buffer = self._buffer, b""
        self.hold(paused=False)
        return data

    def put_back(self, data: bytes) -> None:
        """What came after the request's end: the next one's."""
        self._buffer = data

    def hold(self, *, paused: bool) -> None:
        """Stop reading while the replica cannot take more."""
        transport = self._transport
        if transport is None or transport.is_closing() or paused == self._reading_paused:
            return
        self._reading_paused = paused
        if paused:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def check(self, now: float) -> None:
        """Called by the sweep: end what has taken too long."""
        if self._transport is None:
            return
        if self._paused_at is not None and now - self._paused_at > self._engine.limits.write_stall_s:
            self._transport.abort()
        elif self._exchange is None and (now > self._deadline or self._has_had_its_chance(now)):
            if self._reading in (Reading.BODY, Reading.CHUNKED):
                self.refuse(408, "body_timeout", self._why_late(now))
            elif self._reading is not Reading.HEAD:
                self._transport.abort()
            elif self._buffer or not self._unread_bytes():
                self._close()

    def abort(self) -> None:
        """Reset the connection: the only honest end of an answer without framing."""
        if self._transport is not None:
            self._transport.abort()

    def leave(self) -> None:
        """Go to the worker that takes this one's place, if idle between two requests and with all that was written sent."""
        transport, give = self._transport, self._engine.give
        if give is None or transport is None or transport.is_closing() or not self._idle:
            return
        if not transport.get_write_buffer_size() and give(transport.get_extra_info("socket").fileno()):
            transport.abort()  # here only: the socket lives on there

    @property
    def asking(self) -> bool:
        """True while a request arrives, or may still come."""
        return self._exchange is None and self._reading is not Reading.NOTHING

    def expel(self) -> None:
        """Close now, whatever is under way."""
        if self._exchange is not None:
            self._exchange.expire()
        elif self._transport is not None:
            self._transport.abort()

    def end_held(self) -> None:
        """End a request that waits for its model to start."""
        if self._exchange is not None and self._exchange.queued and self._exchange.holds:
            self._exchange.expire()

    # -- between requests --------------------------------------------------------------------------------------------

    @property
    def _idle(self) -> bool:
        return self._exchange is None and self._reading is Reading.HEAD and not self._buffer

    @property
    def _patience_s(self) -> float:
        """How long the next request's first byte is waited for."""
        limits = self._engine.limits
        return limits.keepalive_s if self._served else limits.head_timeout_s

    def _has_had_its_chance(self, now: float) -> bool:
        """The router stops, and nothing came for so long that nothing will."""
        engine = self._engine
        return engine.draining and self._idle and now > self._deadline - self._patience_s + engine.limits.last_chance_s

    def _unread_bytes(self) -> int:
        """How much has come that this turn of the loop has not read yet: a request that met the end of its connection."""
        assert self._transport is not None  # noqa: S101 - only asked of a client that is there
        count = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
        return int.from_bytes(count, sys.byteorder)

    # -- reading requests --------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Close once the client has taken everything, for which it has as long as any stalled client."""
        self._reading = Reading.NOTHING
        self._deadline = self._engine.now() + self._engine.limits.write_stall_s
        if self._transport is not None:
            self._transport.close()

    def _go_on(self) -> None:
        """Read on; the next request may be there already."""
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()
        if self._buffer:
            asyncio.get_running_loop().call_soon(self._next_pipelined)

    def _next_pipelined(self) -> None:
        ready = self._exchange is None and not self.paused and self._reading is Reading.HEAD
        if ready and self._transport is not None:
            data, self._buffer = self._buffer, b""
            self._feed(data)

    def go_on_without_rest(self) -> None:
        """Hand the form on while the rest of it arrives, if it has named its model by now; else all of it is held."""
        head = self._head
        assert head is not None  # noqa: S101 - a body follows a head
        self._streams_from = 0
        beginning = b"".join(self._pieces)
        form = beginning_of(head, beginning)
        if form is None:
            return
        self._head, self._pieces = None, []
        self._release_body()
        self._reading = Reading.HEAD
        exchange = UploadExchange(
            self._engine, self, head, beginning, form=form, rest_bytes=self._body_remaining, until=self._body_until
        )
        self._exchange = exchange
        exchange.start()

    def dispatch(self, head: RequestHead, body: bytes, rest: bytes) -> None:
        """See `RequestReader`."""
        self._reading = Reading.HEAD
        self._buffer = rest
        exchange: Exchange
        if head.websocket is not None:
            exchange = WebSocketExchange(self._engine, self, head, body)
        elif self._engine.needs.survival:
            exchange = SurvivingExchange(self._engine, self, head, body)
        else:
            exchange = Exchange(self._engine, self, head, body)
        self._exchange = exchange
        exchange.start()

    def refuse(self, status: int, code: str, message: str, path: bytes = b"") -> None:
        """Answer a request that is not taken, then drop what still comes of it for a moment, then close."""
        transport = self._transport
        if transport is None:
            return
        self._pieces = []
        self._release_body()
        dialect = dialect_of(self._head.path if self._head is not None else path)
        body = answers.error_body(status, code, message, dialect)
        cors = self._head.cors if self._head is not None else b""
        transport.write(answers.local_answer(status, body, keep_alive=False, more_lines=cors))
        self._linger(transport)

    def _linger(self, transport: asyncio.Transport) -> None:
        """Drop what still comes of a request that is answered, for a moment: closed at once, the client might not read why."""
        self._reading = Reading.NOTHING
        self._buffer = b""
        self.hold(paused=False)
        self._deadline = self._engine.now() + LINGER_S
        if transport.can_write_eof():
            transport.write_eof()
