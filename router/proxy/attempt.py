"""One try at one replica: connect, ask, pass the answer on, and count once how it went.

Callbacks only; the hot path starts no task. What follows from a failure (another replica, an error) is the exchange's
to decide.
"""

import asyncio
import errno
import math
import socket
import ssl
from enum import Enum
from typing import TYPE_CHECKING

from router.counters import EJECTIONS, FIRST_BYTE, AttemptOutcome, Gaps
from router.model import Endpoint
from router.outlier import AttemptVerdict
from router.policy.replica_view import PlacedRequest
from router.policy.usage import cached_share, written_tokens
from router.proxy.head import ResponseHead
from router.proxy.reach import CLOSES, SPEAKS_TLS, reason_of
from router.proxy.response_writer import CUT_OFF, ResponseWriter
from router.proxy.upstream import Broken, Upstream
from router.proxy.watch import StallWatch

if TYPE_CHECKING:
    from router.proxy.engine import Engine
    from router.proxy.exchange import Exchange

BUSY = frozenset({429, 503})
_CLIENT_ERROR, _SERVER_ERROR = 400, 500
_NOBODY_THERE = (ConnectionRefusedError, TimeoutError, socket.gaierror, UnicodeError, ssl.SSLError)
_NO_WAY_THERE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)
"""Unlike a want of descriptors, say, which is our own fault (docs/faults.md D19 to D21)."""
_INNOCENT = (AttemptVerdict.GOOD, AttemptVerdict.NEUTRAL)


class AttemptPhase(Enum):
    """Where an attempt stands."""

    CONNECTING = "connecting"
    WAITING = "waiting"
    """Sent; no byte of an answer yet."""
    RELAYING = "relaying"
    OVER = "over"


_ASKED = (AttemptPhase.WAITING, AttemptPhase.RELAYING)


class UpstreamAttempt:
    """One try.

    Args:
        engine: The worker's shared state.
        exchange: The request.
        endpoint: Whom to ask.
        placement: What the policy is to be told of it, if anything.
    """

    # Most of these keep their defaults in most attempts: class attributes cost nothing per request.
    first_byte_at = 0.0
    _connecting: asyncio.Task[None] | None = None
    _upstream: Upstream | None = None
    _writer: ResponseWriter | None = None
    _stale_retried = False
    _status = 0
    _sent_at = math.inf
    last_byte_at = 0.0
    """When the answer's latest byte came, or its head; 0 while nothing has."""
    _gaps: Gaps | None = None

    def __init__(
        self, engine: "Engine", exchange: "Exchange", endpoint: Endpoint, placement: PlacedRequest | None = None
    ) -> None:
        self._engine = engine
        self._exchange = exchange
        self._pool = engine.pool(endpoint)
        self.endpoint = endpoint
        self._placement = placement
        self._kind = exchange.kind if endpoint is not engine.control else None
        self.phase = AttemptPhase.CONNECTING

    def begin(self) -> None:
        """Count the request as in flight and ask, over an idle connection or a new one."""
        self._engine.begin_attempt(self.endpoint)
        connection = self._pool.take()
        if connection is None:
            self._begin_connect()
        else:
            self._send(connection)

    def drop(self, verdict: AttemptVerdict, outcome: AttemptOutcome) -> None:
        """Close the replica's leg, in whatever phase it is."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None
        self._settle(verdict, outcome)

    def story(self) -> dict[str, object]:
        """Why it went there, for the access log."""
        return self._placement.story() if self._placement is not None else {}

    def pause(self) -> None:
        """The client cannot take more."""
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        """The client can take more again."""
        self.last_byte_at = self._engine.now()  # the wait was the client's, not the replica's
        if self._upstream is not None:
            self._upstream.resume()

    def late(self, now: float) -> tuple[str, str] | None:
        """Code and message of the deadline that has passed, if one has."""
        if self.phase is AttemptPhase.WAITING and now > self._sent_at + self._engine.limits.first_byte_timeout_s:
            return "first_byte_timeout", "the replica sent no answer in time"
        if self.phase is AttemptPhase.RELAYING and now > self.last_byte_at + self._engine.limits.idle_timeout_s:
            return "idle_timeout", "the replica stopped sending"
        return None

    def tell(self, watch: StallWatch) -> None:
        """Say whether the replica keeps this request waiting. A head alone is none of the engine's doing."""
        kind = self._kind
        if kind is None or self.phase not in _ASKED:
            return
        if self.first_byte_at:
            watch.silence.heard(self.endpoint.id, self.last_byte_at)
        else:
            watch.waits(self.endpoint, kind, self._sent_at, len(self._exchange.body))

    # -- from the replica's connection -------------------------------------------------------------------------------

    def on_head(self, head: ResponseHead) -> None:
        """The replica's answer begins."""
        self._status = head.status
        if self._engine.unreached:
            self._engine.note_reached(self.endpoint)
        self._writer = self._exchange.accept(head)
        if self._writer is None:
            busy = head.status in BUSY
            self.drop(
                AttemptVerdict.NEUTRAL if busy else AttemptVerdict.SERVER_ERROR,
                AttemptOutcome.BUSY if busy else AttemptOutcome.SERVER_ERROR,
            )
            self._exchange.try_elsewhere()
            return
        self.phase = AttemptPhase.RELAYING
        self.last_byte_at = self._engine.now()

    def on_body(self, data: bytes, *, framed: bool) -> None:
        """Bytes of the answer."""
        writer, engine = self._writer, self._engine
        assert writer is not None  # noqa: S101 - a body follows a head
        now = engine.now()
        if not self.first_byte_at:
            self.first_byte_at = now
            if self._placement is not None:
                self._placement.first_byte(now)
                if writer.is_stream:
                    self._placement.cached_share = cached_share(data)  # messages: in the first event, and only there
            engine.counters.observe(self.endpoint.slot, FIRST_BYTE, now - self._exchange.started)
            self._is_answered(now)
        elif writer.is_stream:
            if self._gaps is None:
                self._gaps = engine.counters.gaps(self.endpoint.slot)
            self._gaps.observe(now - self.last_byte_at)
        self.last_byte_at = now
        writer.body(data, framed=framed)

    def on_end(self) -> None:
        """The answer is complete, as far as its framing goes."""
        writer = self._writer
        assert writer is not None  # noqa: S101 - an end follows a head
        self._upstream = None
        status = writer.judged(self._status)
        if status == CUT_OFF:
            self._settle(AttemptVerdict.BROKEN, AttemptOutcome.TRUNCATED)
            self._exchange.broken("upstream_truncated", "the replica ended its answer before it was complete")
            return
        if self._placement is not None:
            self._take_usage(self._placement, writer.last_bytes())
        writer.end()
        verdict, outcome = _judge(status)
        self._settle(verdict, outcome)
        self._exchange.finish(keep_alive=writer.keep_alive)

    def on_whole(self, head: ResponseHead, body: bytes) -> None:
        """The whole answer at once."""
        self._upstream = None
        self._status = head.status
        exchange, engine = self._exchange, self._engine
        if engine.unreached:
            engine.note_reached(self.endpoint)
        self.first_byte_at = engine.now()
        writer = exchange.accept(head)
        if writer is None:
            busy = head.status in BUSY
            self._settle(
                AttemptVerdict.NEUTRAL if busy else AttemptVerdict.SERVER_ERROR,
                AttemptOutcome.BUSY if busy else AttemptOutcome.SERVER_ERROR,
            )
            exchange.try_elsewhere()
            return
        self._writer = writer
        writer.whole(body)  # first: the client need not wait for our bookkeeping
        engine.counters.observe(self.endpoint.slot, FIRST_BYTE, self.first_byte_at - exchange.started)
        self._is_answered(self.first_byte_at)
        if self._placement is not None:
            self._placement.answered = True
            self._take_usage(self._placement, body)
        verdict, outcome = _judge(head.status)
        self._settle(verdict, outcome)
        exchange.finish(keep_alive=writer.keep_alive)

    def on_broken(self, how: Broken) -> None:
        """The connection failed before the answer was complete."""
        self._upstream = None
        if how is Broken.STALE and not self._stale_retried:
            # The server closed an idle connection as we wrote to it: no fault, no attempt (D9).
            self._stale_retried = True
            self._begin_connect()
        elif how is Broken.MALFORMED:
            self._settle(AttemptVerdict.BROKEN, AttemptOutcome.MALFORMED)
            self._exchange.broken("upstream_malformed", "the replica's answer is no valid HTTP", charged=True)
        else:
            if how is not Broken.TRUNCATED:
                self._engine.note_unreached(self.endpoint, SPEAKS_TLS if how is Broken.TLS else CLOSES)
            self._settle(AttemptVerdict.BROKEN, AttemptOutcome.DIED)
            self._exchange.broken("upstream_died", "the replica closed the connection before its answer was complete")

    # -- inside ------------------------------------------------------------------------------------------------------

    def _is_answered(self, now: float) -> None:
        """The first bytes of an answer came: the engine lives, unless others of its server refused for it."""
        if self._kind is not None and self._status < _CLIENT_ERROR:
            self._engine.watch.answered(self.endpoint, self._kind, now - self._sent_at, now)

    def _take_usage(self, placement: PlacedRequest, tail: bytes) -> None:
        share = cached_share(tail)
        if share is not None:
            placement.cached_share = share
        if placement.non_streamed:
            placement.written_tokens = written_tokens(tail)

    def _begin_connect(self) -> None:
        self.phase = AttemptPhase.CONNECTING
        self._connecting = self._engine.scope.spawn("connect", self._connect())

    async def _connect(self) -> None:
        try:
            connection = await self._engine.connect(self.endpoint)
        except (OSError, TimeoutError, UnicodeError) as error:  # UnicodeError: a host that cannot be one
            self._connecting = None
            self._engine.note_unreached(self.endpoint, reason_of(error, self._engine.where(self.endpoint)))
            nobody = isinstance(error, _NOBODY_THERE) or (isinstance(error, OSError) and error.errno in _NO_WAY_THERE)
            self._settle(AttemptVerdict.REFUSED if nobody else AttemptVerdict.FAULT, AttemptOutcome.CONNECT_FAILED)
            self._exchange.broken("connect_failed", "no replica could be reached", status=503)
            return
        self._connecting = None
        self._send(connection)

    def _send(self, connection: Upstream) -> None:
        self.phase = AttemptPhase.WAITING
        self._sent_at = self._engine.now()
        self._upstream = connection
        head = self._exchange.head
        connection.send(
            self,
            self._exchange.request_for(self.endpoint, self._pool),
            self._exchange.body,
            to_head_request=head.method == b"HEAD",
            raw_chunks=not head.http10 and not self._exchange.follows_choices,
        )

    def _settle(self, verdict: AttemptVerdict, outcome: AttemptOutcome) -> None:
        """It is over: count it, once."""
        if self.phase is AttemptPhase.OVER:
            return
        self.phase = AttemptPhase.OVER
        engine, exchange, endpoint = self._engine, self._exchange, self.endpoint
        now = engine.now()
        if self._placement is not None:
            self._placement.over(now)
        sent_bytes = self._writer.sent_bytes if self._writer is not None else 0
        error = verdict not in _INNOCENT
        engine.counters.settle(
            endpoint.slot, outcome, now - exchange.started, len(exchange.body), sent_bytes, error=error
        )
        if engine.traces is not None and endpoint is not engine.control:
            engine.traces.attempt_over(exchange, endpoint, outcome, self._status, self.first_byte_at)
        if engine.has_limits:
            engine.room_made()
        if endpoint is engine.control or (verdict is AttemptVerdict.GOOD and engine.outliers.quiet):
            return
        if verdict is AttemptVerdict.GOOD:
            engine.outliers.answered_elsewhere(exchange.failed)
        elif error:
            exchange.failed = (*exchange.failed, endpoint)
        if engine.outliers.note(endpoint, verdict, exchange.caller, exchange.peers, now):
            engine.counters.add(endpoint.slot, EJECTIONS)


def _judge(status: int) -> tuple[AttemptVerdict, AttemptOutcome]:
    """What a whole answer with `status` says of its replica."""
    if status < _CLIENT_ERROR:
        return AttemptVerdict.GOOD, AttemptOutcome.OK
    if status in BUSY:
        return AttemptVerdict.NEUTRAL, AttemptOutcome.BUSY
    if status < _SERVER_ERROR:
        return AttemptVerdict.NEUTRAL, AttemptOutcome.CLIENT_ERROR
    return AttemptVerdict.SERVER_ERROR, AttemptOutcome.SERVER_ERROR
