"""A trace's part in the router: one span per request, and below it one per wait in the queue and one per attempt.

Spans are made when an attempt or a request is over, from the times recorded by then. Only the ids are chosen earlier, because
the replica gets them (`traceparent`). Without tracing this costs a comparison with None.
"""

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from common.span import SPAN_BITS, TRACE_BITS, Kind, Span, parse_traceparent, traceparent
from router.counters import AttemptOutcome
from router.model import Endpoint
from router.proxy.head import RequestHead

_TRACEPARENT = re.compile(rb"(?:^|(?<=\n))traceparent: ([^\r\n]*)\r\n")
_SERVER_ERROR = 500
_FAILED = frozenset(AttemptOutcome) - {AttemptOutcome.OK, AttemptOutcome.CLIENT_ERROR, AttemptOutcome.CLIENT_GONE}
Attributes = dict[str, str | int | float | bool]


@dataclass(slots=True)
class Trace:
    """What one request remembers: its ids, when it began, and where the next piece begins.

    Times are monotonic seconds; `epoch` is when their zero was.
    """

    trace_id: int
    span_id: int
    parent_id: int | None
    sampled: bool
    started: float
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

    def begin(self, forwarded: bytes, started: float) -> Trace:
        """A request's trace: the caller's, if its `forwarded` lines name exactly one, else a new one."""
        values = _TRACEPARENT.findall(forwarded)
        parent = parse_traceparent(values[0]) if len(values) == 1 else None
        sampled = parent.sampled if parent else self.rng.random() < self.sample
        trace_id = parent.trace_id if parent else self._id(TRACE_BITS)
        parent_id = parent.span_id if parent else None
        epoch = self.wall() - self.now()
        return Trace(trace_id, self._id(), parent_id, sampled, started, reached=started, epoch=epoch)

    def forwarded(self, trace: Trace, lines: bytes) -> bytes:
        """The header lines for a replica: `traceparent` names the attempt instead of the client's span."""
        if not trace.sampled:
            return lines
        trace.attempt_id = trace.attempt_id or self._id()
        return _TRACEPARENT.sub(b"", lines) + b"traceparent: %b\r\n" % traceparent(trace.trace_id, trace.attempt_id)

    def attempt_over(
        self,
        trace: Trace,
        endpoint: Endpoint,
        outcome: AttemptOutcome,
        *,
        status: int,
        first_byte_at: float,
        dequeued_at: float,
    ) -> None:
        """An attempt ended now; `status`, `first_byte_at` and `dequeued_at` are 0 where there is none."""
        if trace.sampled:
            if dequeued_at > trace.reached:
                self._piece(trace, self._id(), "queue", dequeued_at)
            attributes: Attributes = {
                "server.address": endpoint.host,
                "server.port": endpoint.port,
                "inference.replica": endpoint.name,
                "inference.outcome": outcome.name.lower(),
            }
            if status:
                attributes["http.response.status_code"] = status
            if first_byte_at:
                attributes["inference.first_byte_ms"] = round((first_byte_at - trace.reached) * 1e3, 3)
            error = outcome.name.lower() if outcome in _FAILED else None
            name = f"attempt {endpoint.name}"
            attempt_id = trace.attempt_id or self._id()
            self._piece(trace, attempt_id, name, self.now(), kind="client", attributes=attributes, error=error)
        trace.attempt_id = 0

    def request_over(
        self, trace: Trace, head: RequestHead, request_id: bytes, *, model: str | None, status: int, attempts: int
    ) -> None:
        """A request ended now."""
        if not trace.sampled:
            return
        attributes: Attributes = {
            "http.request.method": head.method.decode(),
            "url.path": head.path.decode(),
            "http.response.status_code": status,
            "inference.request_id": request_id.decode(),
            "inference.attempts": attempts,
        }
        if model is not None:
            attributes["gen_ai.request.model"] = model
        error = f"answered {status}" if status >= _SERVER_ERROR else None if status else "no answer"
        name = head.method.decode()
        if attempts:  # only paths that are proxied: a name is one of a few
            path, operation = head.path.decode(), head.operation
            response = operation.response if operation is not None else None
            name += f" {path if response is None else path.replace(response, '{id}')}"
        times = trace.epoch + trace.started, trace.epoch + self.now()
        self.send(Span(name, trace.trace_id, trace.span_id, trace.parent_id, *times, "server", attributes, error))

    def _piece(
        self,
        trace: Trace,
        span_id: int,
        name: str,
        until: float,
        *,
        kind: Kind = "internal",
        attributes: Attributes | None = None,
        error: str | None = None,
    ) -> None:
        """The span from where the last piece ended until `until`."""
        begin, trace.reached = trace.reached, until
        times = trace.epoch + begin, trace.epoch + until
        self.send(Span(name, trace.trace_id, span_id, trace.span_id, *times, kind, attributes or {}, error))

    def _id(self, bits: int = SPAN_BITS) -> int:
        return self.rng.getrandbits(bits) or 1
