"""A trace's part in the router: one span per request, one below it per wait in the queue and per attempt.

Made when an attempt or a request is over, from the times it has recorded by then; only the ids are chosen earlier, because
the replica is told them (`traceparent`). Off, this costs a comparison with None.
"""

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.span import SPAN_BITS, TRACE_BITS, Kind, Span, parse_traceparent, traceparent
from router.counters import AttemptOutcome
from router.model import Endpoint

if TYPE_CHECKING:
    from router.proxy.exchange import Exchange

_TRACEPARENT = re.compile(rb"(?:^|(?<=\n))traceparent: ([^\r\n]*)\r\n")
_SERVER_ERROR = 500
_FAILED = frozenset(AttemptOutcome) - {AttemptOutcome.OK, AttemptOutcome.CLIENT_ERROR, AttemptOutcome.CLIENT_GONE}
Attributes = dict[str, str | int | float | bool]


@dataclass(slots=True)
class Trace:
    """What one request remembers: its ids, and where the next piece begins.

    Times are monotonic seconds; `epoch` is when their zero was.
    """

    trace_id: int
    span_id: int
    parent_id: int | None
    sampled: bool
    reached: float
    epoch: float
    attempt_id: int = 0


@dataclass(slots=True)
class Traces:
    """Makes the spans of one worker.

    Args:
        send: Takes finished spans.
        sample: Share of the requests without a `traceparent` that are kept.
        rng: Chooses ids and the sample.
        now: Monotonic seconds, as exchanges have them.
        wall: Seconds since the epoch.
    """

    send: Callable[[Span], None]
    sample: float = 1.0
    rng: random.Random = field(default_factory=random.SystemRandom)
    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time

    def forwarded(self, exchange: "Exchange", lines: bytes) -> bytes:
        """The header lines for a replica: `traceparent` names the attempt instead of the client's span."""
        trace = self._trace(exchange)
        if not trace.sampled:
            return lines
        trace.attempt_id = trace.attempt_id or self._id()
        return _TRACEPARENT.sub(b"", lines) + b"traceparent: %b\r\n" % traceparent(trace.trace_id, trace.attempt_id)

    def attempt_over(
        self, exchange: "Exchange", endpoint: Endpoint, outcome: AttemptOutcome, status: int, first_byte_at: float
    ) -> None:
        """An attempt ended now."""
        trace = self._trace(exchange)
        if trace.sampled:
            if exchange.dequeued_at > trace.reached:
                self._piece(trace, self._id(), "queue", exchange.dequeued_at)
            seen: Attributes = {
                "server.address": endpoint.host,
                "server.port": endpoint.port,
                "inference.replica": endpoint.name,
                "inference.outcome": outcome.name.lower(),
            }
            if status:
                seen["http.response.status_code"] = status
            if first_byte_at:
                seen["inference.first_byte_ms"] = round((first_byte_at - trace.reached) * 1e3, 3)
            error = outcome.name.lower() if outcome in _FAILED else None
            name = f"attempt {endpoint.name}"
            attempt_id = trace.attempt_id or self._id()
            self._piece(trace, attempt_id, name, self.now(), kind="client", seen=seen, error=error)
        trace.attempt_id = 0

    def exchange_over(self, exchange: "Exchange", model: str | None, status: int, attempts: int) -> None:
        """A request ended now."""
        trace = self._trace(exchange)
        if not trace.sampled:
            return
        seen: Attributes = {
            "http.request.method": exchange.head.method.decode(),
            "url.path": exchange.head.path.decode(),
            "http.response.status_code": status,
            "inference.request_id": exchange.request_id.decode(),
            "inference.attempts": attempts,
        }
        if model is not None:
            seen["gen_ai.request.model"] = model
        error = f"answered {status}" if status >= _SERVER_ERROR else None if status else "no answer"
        name = exchange.head.method.decode()
        if attempts:  # only paths that are proxied: a name is one of a few
            name += f" {exchange.head.path.decode()}"
        times = trace.epoch + exchange.started, trace.epoch + self.now()
        self.send(Span(name, trace.trace_id, trace.span_id, trace.parent_id, *times, "server", seen, error))

    def _piece(
        self,
        trace: Trace,
        span_id: int,
        name: str,
        until: float,
        *,
        kind: Kind = "internal",
        seen: Attributes | None = None,
        error: str | None = None,
    ) -> None:
        """The span from where the last piece ended until `until`."""
        begin, trace.reached = trace.reached, until
        times = trace.epoch + begin, trace.epoch + until
        self.send(Span(name, trace.trace_id, span_id, trace.span_id, *times, kind, seen or {}, error))

    def _trace(self, exchange: "Exchange") -> Trace:
        """The request's trace: the caller's, if it named exactly one, else a new one."""
        if exchange.trace is None:
            given = _TRACEPARENT.findall(exchange.head.forwarded)
            parent = parse_traceparent(given[0]) if len(given) == 1 else None
            sampled = parent.sampled if parent else self.rng.random() < self.sample
            trace_id = parent.trace_id if parent else self._id(TRACE_BITS)
            exchange.trace = Trace(
                trace_id,
                self._id(),
                parent.span_id if parent else None,
                sampled,
                reached=exchange.started,
                epoch=self.wall() - self.now(),
            )
        return exchange.trace

    def _id(self, bits: int = SPAN_BITS) -> int:
        return self.rng.getrandbits(bits) or 1
