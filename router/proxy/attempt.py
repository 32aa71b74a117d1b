"""One try at one replica: connect, ask, pass the response on, and count once how it went.

Callbacks only; the hot path starts no task. What a failure says is judged in `dispatch.py`, and what follows from it (another
replica, an error) is the request's to carry out.
"""

import asyncio
import errno
import socket
import ssl
from enum import Enum
from math import inf
from typing import Final

from router import dispatch
from router.counters import EJECTIONS, FIRST_BYTE, IN_FLIGHT
from router.dispatch import Failure, Judgement, judge
from router.model import Endpoint
from router.outlier import AttemptVerdict
from router.policy.placed import PlacedRequest
from router.policy.usage import UNTOLD, Usage, finish_reason, usage_of
from router.proxy.engine import Engine, tag_of
from router.proxy.head import ResponseHead
from router.proxy.paths import RESPONSES
from router.proxy.reach import CLOSES, SPEAKS_TLS, reason_of
from router.proxy.response_writer import CUT_OFF, ResponseWriter
from router.proxy.sides import ProxiedRequest, ResponseListener
from router.proxy.upstream import Upstream
from router.proxy.watch import StallWatch

_CLIENT_ERROR: Final = 400
_NOBODY_THERE = (ConnectionRefusedError, TimeoutError, socket.gaierror, UnicodeError, ssl.SSLError)
_NO_WAY_THERE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)
_INNOCENT = (AttemptVerdict.GOOD, AttemptVerdict.NEUTRAL)


class AttemptPhase(Enum):
    """Where an attempt stands."""

    IN_LINE = "in line"
    """Its replica has enough to read for now (`policy/line.py`)."""
    CONNECTING = "connecting"
    WAITING = "waiting"
    """Sent; no byte of an answer yet."""
    RELAYING = "relaying"
    OVER = "over"


_ASKED = (AttemptPhase.WAITING, AttemptPhase.RELAYING)


class UpstreamAttempt(ResponseListener):
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
    _status = 0
    _in_line_at = 0.0
    _sent_at = inf
    last_byte_at = 0.0
    """When the answer's latest byte came, or its head; 0 while nothing has."""
    pieces = 0
    """Of a stream, counted as tokens so far."""
    usage: Usage | None = None
    """What the answer told, in the end or, of a stream of messages, in its first event."""
    finish_reason = b""

    def __init__(
        self, engine: Engine, exchange: ProxiedRequest, endpoint: Endpoint, placement: PlacedRequest | None
    ) -> None:
        self._engine = engine
        self._exchange = exchange
        self._pool = engine.connector.pool(endpoint)
        self._tally = engine.counters.tally(endpoint.slot)
        self.endpoint = endpoint
        self._placement = placement
        self._kind = exchange.kind
        self.phase = AttemptPhase.CONNECTING

    def __repr__(self) -> str:
        """For debugging."""
        return f"<UpstreamAttempt {self.endpoint.name} {self.phase.value} status={self._status} {self._upstream}>"

    def begin(self) -> None:
        """Count the request as in flight and ask, now or in its turn."""
        engine, placement = self._engine, self._placement
        engine.begin_attempt(self.endpoint)
        if placement is None or not self._exchange.may_wait or engine.outliers.on_trial(self.endpoint):
            self._ask()
        elif placement.must_wait(now := engine.now()):
            self.phase = AttemptPhase.IN_LINE
            self._in_line_at = now
            placement.wait(self._exchange.urgency, self._turn_came, now)
        else:
            self._ask()

    def wait_no_longer(self) -> None:
        """Its replica is to get it now, however much there is to read."""
        if self._placement is not None:
            self._placement.send(self._engine.now())

    def _turn_came(self) -> None:
        # Not inside what another request's bytes have set off.
        asyncio.get_running_loop().call_soon(self._leave_line)

    def _leave_line(self) -> None:
        if self.phase is AttemptPhase.IN_LINE:
            self._exchange.waited(self._in_line_at, self._engine.now())
            self._ask()

    def _ask(self) -> None:
        """Over an idle connection or a new one."""
        self.phase = AttemptPhase.CONNECTING
        connection = self._pool.take()
        if connection is None:
            self._begin_connect()
        else:
            self._send(connection)

    def drop(self, judgement: Judgement) -> None:
        """Close the replica's leg, in whatever phase it is."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None
        self._settle(judgement)

    def story(self) -> dict[str, object]:
        """What became of it, and why it went there, for the access log."""
        story = self._placement.story() if self._placement is not None else {}
        usage = self.usage
        told = (usage.prompt, usage.cached, usage.written, usage.reasoning) if usage is not None else ()
        names = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
        story.update((name, count) for name, count in zip(names, told, strict=False) if count >= 0)
        if self.pieces and (usage is None or usage.written < 0):
            story["estimated_tokens"] = self.pieces
        if self.finish_reason:
            story["finish_reason"] = self.finish_reason.decode()
        return story

    def set_paused(self, *, paused: bool) -> None:
        """The client cannot take more, or can again."""
        if not paused:
            self.last_byte_at = self._engine.now()  # the wait was the client's, not the replica's
        if self._upstream is not None:
            self._upstream.set_paused(paused=paused)

    @property
    def deadlines_from(self) -> tuple[float, float]:
        """When the request was sent, while no response has begun; and when the latest byte of one came that is not over."""
        if self.phase is AttemptPhase.WAITING:
            return self._sent_at, inf
        return inf, self.last_byte_at if self.phase is AttemptPhase.RELAYING else inf

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
        """The response begins."""
        self._status = head.status
        self._engine.connector.note_reached(self.endpoint)
        self._writer = self._exchange.accept(head)
        if self._writer is None:
            judgement = judge(head.status)
            self.drop(judgement)
            self._exchange.ask_another(judgement)
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
            self._tally.observe(FIRST_BYTE, now - self._exchange.asked_at)
            self._is_answered(now, data)
            if writer.is_stream:
                self._take_first_usage(data)
        elif writer.is_stream:
            self._tally.gap(now - self.last_byte_at)
            self.pieces += 1
        self.last_byte_at = now
        writer.body(data, framed=framed)

    def on_end(self) -> None:
        """The answer is complete, as far as its framing goes."""
        writer = self._writer
        assert writer is not None  # noqa: S101 - an end follows a head
        self._upstream = None
        status = writer.judged(self._status)
        if status == CUT_OFF:
            self._fail(dispatch.INCOMPLETE)
            return
        self._take_usage(writer.last_bytes())
        writer.end()
        self._settle(judge(status))
        self._exchange.finish(keep_alive=writer.keep_alive)

    def on_whole(self, head: ResponseHead, body: bytes) -> None:
        """The whole answer at once."""
        self._upstream = None
        translation = self._exchange.translation
        if translation is not None and translation.active:
            self.on_head(head)
            if self._writer is not None:
                self.on_body(body, framed=False)
                self.on_end()
            return
        self._status = head.status
        exchange, engine = self._exchange, self._engine
        engine.connector.note_reached(self.endpoint)
        self.first_byte_at = engine.now()
        writer = exchange.accept(head)
        judgement = judge(head.status)
        if writer is None:
            self._settle(judgement)
            exchange.ask_another(judgement)
            return
        self._writer = writer
        writer.whole(body)  # first: the client need not wait for our bookkeeping
        self._tally.observe(FIRST_BYTE, self.first_byte_at - exchange.started)
        self._is_answered(self.first_byte_at, body)
        if self._placement is not None:
            self._placement.answered = True
        self._take_usage(body)
        self._settle(judgement)
        exchange.finish(keep_alive=writer.keep_alive)

    def on_stale(self) -> None:
        """The server closed an idle connection while it was written to: no fault, no attempt (docs/faults.md D9)."""
        self._upstream = None
        self._begin_connect()

    def on_failed(self, failure: Failure) -> None:
        """The connection failed before the response was complete."""
        self._upstream = None
        if failure is dispatch.CLOSED or failure is dispatch.SPOKE_TLS:
            reason = SPEAKS_TLS if failure is dispatch.SPOKE_TLS else CLOSES
            self._engine.connector.note_unreached(self.endpoint, reason)
        self._fail(failure)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _is_answered(self, now: float, data: bytes) -> None:
        """The first bytes of an answer came: the engine lives, unless others of its server refused for it."""
        engine, kind = self._engine, self._kind
        if kind is not None and self._status < _CLIENT_ERROR:
            engine.watch.answered(self.endpoint, kind, now - self._sent_at, now)
            if kind[0] == RESPONSES:
                engine.owners.learn(data, tag_of(self.endpoint), engine.by_tag)

    def _take_first_usage(self, data: bytes) -> None:
        """A stream begins: one of messages tells here, and only here, what was in the cache."""
        usage = usage_of(data)
        if usage is not None:
            usage.written = usage.reasoning = UNTOLD  # not final yet
            self.usage = usage
            if self._placement is not None:
                self._placement.cached_share = usage.cached_share()

    def _take_usage(self, tail: bytes) -> None:
        """The answer is whole: what its last bytes tell."""
        first, usage = self.usage, usage_of(tail)
        self.finish_reason = finish_reason(tail)
        if usage is None:
            return
        if first is not None:
            usage.add_first(first)
        self.usage = usage
        placement = self._placement
        if placement is not None:
            placement.cached_share = usage.cached_share()
            if placement.non_streamed and usage.written >= 0:
                placement.written_tokens = usage.written

    def _begin_connect(self) -> None:
        self.phase = AttemptPhase.CONNECTING
        self._connecting = self._engine.scope.spawn("connect", self._connect())

    async def _connect(self) -> None:
        connector = self._engine.connector
        try:
            connection = await connector.connect(self.endpoint)
        except (OSError, TimeoutError, UnicodeError) as error:
            self._connecting = None
            connector.note_unreached(self.endpoint, reason_of(error, connector.where(self.endpoint)))
            nobody = isinstance(error, _NOBODY_THERE) or (isinstance(error, OSError) and error.errno in _NO_WAY_THERE)
            self._fail(dispatch.UNREACHABLE if nobody else dispatch.UNCONNECTED)
            return
        self._connecting = None
        self._send(connection)

    def _send(self, connection: Upstream) -> None:
        self.phase = AttemptPhase.WAITING
        self._sent_at = self._engine.now()
        self._upstream = connection
        exchange = self._exchange
        connection.send(
            self,
            self._pool.request(exchange, self.endpoint.api_prefix),
            exchange.sent_body,
            to_head_request=exchange.sent_head.method == b"HEAD",
            raw_chunks=exchange.takes_chunks,
        )

    def _fail(self, failure: Failure) -> None:
        self._settle(failure)
        self._exchange.attempt_failed(failure)

    def _settle(self, judgement: Judgement) -> None:
        """It is over: count it, once."""
        if self.phase is AttemptPhase.OVER:
            return
        self.phase = AttemptPhase.OVER
        engine, exchange, endpoint, verdict = self._engine, self._exchange, self.endpoint, judgement.verdict
        now = engine.now()
        if self._placement is not None:
            self._placement.over(now)
        sent_bytes = self._writer.sent_bytes if self._writer is not None else 0
        error = verdict not in _INNOCENT
        engine.counters.add(endpoint.slot, IN_FLIGHT, -1)
        asked_bytes = len(exchange.body) + exchange.rest_bytes
        self._tally.settle(judgement.outcome, now - exchange.started, asked_bytes, sent_bytes, error=error)
        if self.usage is not None or self.pieces or self.finish_reason:
            self._tally.answered(self.usage, self.finish_reason, self.pieces)
        if engine.traces is not None and exchange.trace is not None:
            engine.traces.attempt_over(
                exchange.trace,
                endpoint,
                judgement.outcome,
                status=self._status,
                first_byte_at=self.first_byte_at,
                dequeued_at=exchange.dequeued_at,
            )
        if engine.needs.room:
            engine.room_made()
        if exchange.dispatch.is_own or (verdict is AttemptVerdict.GOOD and engine.outliers.quiet):
            return
        if verdict is AttemptVerdict.GOOD:
            engine.outliers.answered_elsewhere(exchange.failed)
        elif error:
            exchange.failed = (*exchange.failed, endpoint)
        if engine.outliers.note(endpoint, verdict, exchange.caller, exchange.dispatch.peers, now):
            engine.counters.add(endpoint.slot, EJECTIONS)
