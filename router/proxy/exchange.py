"""One request's life: checks, candidates, attempts, end.

    checks → (choose → [queue] → attempt)* → done

Another replica is asked only while the client has got no byte of an answer, never the same one twice, within
`max_retries` and the retry budget. Whatever happens, `finish` runs once: it settles the counters and tells the client's
connection.
"""

import math
import random
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

from router.admission import PRIORITIES, Priority
from router.counters import QUEUE_WAIT, RETRIES, AttemptOutcome
from router.model import Endpoint, Facts
from router.outlier import AttemptVerdict
from router.policy.replica_view import PlacedRequest
from router.proxy import answers, checks
from router.proxy.attempt import BUSY, UpstreamAttempt
from router.proxy.explain import explain
from router.proxy.head import RequestHead, ResponseHead
from router.proxy.headers import without_credentials
from router.proxy.paths import PROXIED, EndMark, dialect_of, upstream_path
from router.proxy.response_writer import ResponseWriter
from router.silence import Kind

if TYPE_CHECKING:
    from router.proxy.downstream import Downstream
    from router.proxy.engine import Engine
    from router.proxy.tracing import Trace
    from router.proxy.upstream import Pool

_TRY_ELSEWHERE = BUSY | {502, 504}
"""Answers that say "not me, not now": another replica may do better, else they pass through (docs/faults.md A20)."""
_INTERNAL_ERROR = 500
"""May be the request's own: passed on, unless it is an engine that dies."""
_REQUEST_ID_LIMIT = 128
NO_FACTS = Facts()


class RequestPhase(Enum):
    """Where an exchange stands."""

    CHECKS = "checks"
    QUEUED = "queued"
    ASKING = "asking"
    DONE = "done"


class Exchange:
    """One request of one client.

    Args:
        engine: The worker's shared state.
        client: The connection it came by.
        head: The request's head.
        body: The whole body, as it came.
    """

    # Most of these keep their defaults in most requests: class attributes cost nothing per request.
    peers: Sequence[Endpoint] = ()
    _attempt: UpstreamAttempt | None = None
    _attempts = 0
    _status = 0
    _tried: tuple[str, ...] = ()
    _writer: ResponseWriter | None = None
    _comment_at = math.inf
    _moved = False
    _queued_at = 0.0
    _priority = Priority.NORMAL
    dequeued_at = 0.0
    failed: tuple[Endpoint, ...] = ()
    """Who could not answer this request, for reasons that may be the request's."""
    trace: "Trace | None" = None

    def __init__(self, engine: "Engine", client: "Downstream", head: RequestHead, body: bytes) -> None:
        self._engine = engine
        self._client = client
        self._operation = head.operation
        self.phase = RequestPhase.CHECKS
        self._facts = NO_FACTS
        self.head = head
        self.body = body
        self.caller = client.peer
        self.request_id = _request_id(head.request_id)
        self.started = engine.now()

    # -- from the client and the sweep -------------------------------------------------------------------------------

    def start(self) -> None:
        """Let the request in, or answer why not."""
        engine, head = self._engine, self.head
        engine.exchanges.add(self)
        engine.body_bytes += len(self.body)
        if head.preflight is not None:
            self._answer_preflight(head.preflight)
            return
        try:
            key = checks.key_of(engine, head) if engine.has_keys else None
            if checks.check_path(engine, head, self._operation):
                self._ask_control()
                return
            self._facts = checks.facts_of(engine, head, self.body, self._operation)
            if key is not None:
                self.caller = key.name
                self._priority = PRIORITIES[key.priority]
                refusal = engine.keys.allows(key, self._facts.model, self.started)
                if refusal is not None:
                    raise checks.refuse(refusal)
            if engine.chooser.rules.rules:
                self._follow_rules()
        except checks.Rejected as rejected:
            self._fail(rejected.status, rejected.code, str(rejected), *rejected.headers)
            return
        if engine.limits.sse_keepalive_s and self._wants_events():
            self._comment_at = self.started + engine.limits.sse_keepalive_s
        self.choose()

    def client_gone(self) -> None:
        """The client closed: stop the replica's work at once; nobody is to blame."""
        self._drop(AttemptVerdict.NEUTRAL, AttemptOutcome.CLIENT_GONE)
        self.finish(notify=False)

    def client_paused(self) -> None:
        """The client cannot take more."""
        if self._attempt is not None:
            self._attempt.pause()

    def client_resumed(self) -> None:
        """The client can take more again."""
        if self._attempt is not None:
            self._attempt.resume()

    def expire(self) -> None:
        """The router stops and the drain's time is over."""
        self._drop(AttemptVerdict.NEUTRAL, AttemptOutcome.CLIENT_GONE)
        self._fail(503, "router_stopping", "the router is stopping")

    def check(self, now: float) -> None:
        """Called by the sweep: end what has taken too long, keep a waiting stream alive."""
        if self.phase is RequestPhase.DONE:
            return
        limits = self._engine.limits
        attempt = self._attempt
        if attempt is not None:
            attempt.tell(self._engine.watch)
        late = attempt.late(now) if attempt is not None and not self._client.paused else None
        if now - self.started > limits.total_timeout_s:
            late = "request_timeout", f"not answered within {limits.total_timeout_s:g} s"
        if late is not None:
            self._drop(AttemptVerdict.FAULT, AttemptOutcome.TIMED_OUT)
            self._fail(504, *late)
        elif self.phase is RequestPhase.QUEUED and now - self._queued_at > limits.queue_timeout_s:
            self._leave_queue()
            self._fail(503, "queue_timeout", "no replica had room in time", self._retry_after())
        elif now > self._comment_at:
            self._break_silence(now)

    def _break_silence(self, now: float) -> None:
        """A comment for the client, if nothing has come for long enough and it takes what is sent."""
        interval = self._engine.limits.sse_keepalive_s
        silent_since = self._attempt.last_byte_at if self._attempt is not None else 0.0
        if silent_since + interval > now:
            self._comment_at = silent_since + interval
            return
        self._comment_at = now + interval
        if self._client.paused or (self._writer is None and not self._wants_events()):
            return
        self._writer = self._writer or self._new_writer()
        self._writer.comment(self._own_lines())

    def _wants_events(self) -> bool:
        """True when a good answer can only be an event stream, and the client takes one: not so for sound, say (W5)."""
        operation = self._operation
        streams = self._facts.stream and operation is not None and operation.end_mark is not EndMark.NONE
        return streams and self.head.takes_events

    # -- from the attempt --------------------------------------------------------------------------------------------

    def accept(self, head: ResponseHead) -> ResponseWriter | None:
        """Where the replica's answer goes; None to try elsewhere instead."""
        self._status = head.status
        if head.status in _TRY_ELSEWHERE and self._can_retry(charged=True):
            return None
        if head.status == _INTERNAL_ERROR and self._is_the_replicas_fault() and self._can_retry(charged=True):
            self._moved = True
            return None
        engine, attempt = self._engine, self._attempt
        assert attempt is not None  # noqa: S101 - its answer is taken
        writer = self._writer = self._writer or self._new_writer()
        writer.start(head, self._own_lines(), end_marked=attempt.endpoint.end_marked)
        if head.is_event_stream and self._operation is not None and engine.limits.sse_keepalive_s:
            self._comment_at = min(self._comment_at, engine.now() + engine.limits.sse_keepalive_s)
        return writer

    def _is_the_replicas_fault(self) -> bool:
        """True for a 500 that another replica may better: once, where asking twice does no harm, and if others met it too."""
        operation, attempt = self._operation, self._attempt
        if operation is None or not operation.repeatable or self._moved or attempt is None:
            return False
        engine, endpoint = self._engine, attempt.endpoint
        return engine.outliers.suspects(endpoint, self.caller) or engine.watch.has_changed(endpoint)

    def try_elsewhere(self) -> None:
        """The attempt was dropped for an answer that another replica may better."""
        self._retry(charged=True)

    def broken(self, code: str, message: str, *, status: int = 502, charged: bool = False) -> None:
        """An attempt failed: try elsewhere, or tell the client.

        The budget is against storms on replicas that struggle. A replica that is gone does no work for its requests any
        more, so moving them, all at once, adds no load to what was admitted; charged, a death would lose those of its
        requests that exceed the budget (A1, A2 against D8).
        """
        if self._can_retry(charged=charged):
            if self._writer is not None and not self._writer.begun:
                self._writer = None
            self._retry(charged=charged)
        else:
            self._fail(status, code, message)

    def request_for(self, endpoint: Endpoint, pool: "Pool") -> bytes:
        """The request's head as `endpoint` gets it."""
        head, body, traces = self.head, self.body, self._engine.traces
        forwarded = head.forwarded_for_stream if self._wants_events() else head.forwarded
        if traces is not None and endpoint is not self._engine.control:
            forwarded = traces.forwarded(self, forwarded)
        if pool.has_key:
            forwarded = without_credentials(forwarded)
        return b"%b %b%b%b HTTP/1.1\r\n%b%b%bx-request-id: %b\r\n%b\r\n" % (
            head.method,
            pool.base_path,
            upstream_path(head.path, self._operation, endpoint.api_prefix),
            b"?" + head.query if head.query else b"",
            pool.own_lines,
            forwarded,
            self._client.peer_line,
            self.request_id,
            b"content-length: %d\r\n" % len(body) if body or head.method == b"POST" else b"",
        )

    @property
    def follows_choices(self) -> bool:
        """True when the answer has several choices, each of which ends for itself."""
        return self._facts.choices > 1

    @property
    def kind(self) -> Kind | None:
        """What kind of answer the engine is to write; None where another part of the server may answer for it."""
        operation = self._operation
        return (operation.name, self._facts.stream) if operation is not None and operation.by_engine else None

    @property
    def queued(self) -> bool:
        """True while it waits for a replica with room."""
        return self.phase is RequestPhase.QUEUED

    # -- whom to ask -------------------------------------------------------------------------------------------------

    def choose(self) -> None:
        """Pick a replica and ask it, or wait for one with room. Also called when the queue lets this one go."""
        engine = self._engine
        # As they are now: it may have waited, or been tried elsewhere.
        self.peers = engine.peers_for(self._facts.model, self.head.path)
        candidates = engine.candidates(self.peers, self._facts.model, self._tried)
        if not candidates:
            self._fail(*self._nobody())
            return
        if engine.has_limits:
            roomy = [endpoint for endpoint in candidates if engine.has_room(endpoint)]
            if not roomy:
                self._join_queue()
                return
            candidates = roomy
        if self._queued_at:
            self.dequeued_at = engine.now()
            engine.counters.observe(engine.control.slot, QUEUE_WAIT, self.dequeued_at - self._queued_at)
            self._queued_at = 0.0
        chooser, facts, now = engine.chooser, self._facts, engine.now()
        if not self._tried:
            engine.retries.note_request(now)
        decision = chooser.pick(candidates, facts, now)
        self._ask(decision.endpoint, chooser.placed(decision, facts, now))

    def _follow_rules(self) -> None:
        """Become a request for the model that the name leads to: an alias's part, or a fallback."""
        engine, model = self._engine, self._facts.model
        if model is None:
            return
        key = self._facts.affinity
        if key is not None and not key.startswith("key:"):
            key = None  # an address may be everybody's behind a proxy: all of them would be one part's
        target = engine.chooser.resolve(model, key, engine.is_ready)
        if target != model:
            before = len(self.body)
            self.head, self.body = checks.renamed(self.head, self.body, target)
            engine.body_bytes += len(self.body) - before
            self._facts = checks.facts_of(engine, self.head, self.body, self._operation)

    def _ask(self, endpoint: Endpoint, placement: PlacedRequest | None = None) -> None:
        self.phase = RequestPhase.ASKING
        self._tried = (*self._tried, endpoint.id)
        self._attempts += 1
        if self._attempts > 1:
            self._engine.counters.add(endpoint.slot, RETRIES)
        self._attempt = UpstreamAttempt(self._engine, self, endpoint, placement)
        self._attempt.begin()

    def _ask_control(self) -> None:
        """Answer from the router itself: its control plane, or this worker's own explanation."""
        engine, head = self._engine, self.head
        if head.path == b"/admin/explain" and head.method == b"POST":
            facts = checks.facts_of(engine, head, self.body, PROXIED[b"/chat/completions"])
            self._answer(200, explain(engine, facts))
            return
        self.peers = (engine.control,)
        self._ask(engine.control)

    def _retry(self, *, charged: bool) -> None:
        if charged:
            self._engine.retries.note_retry()
        self.choose()

    def _can_retry(self, *, charged: bool) -> bool:
        """Another replica may be tried; `charged` to the retry budget or not."""
        engine = self._engine
        if self._writer is not None and self._writer.answered:
            return False
        if self._attempts > engine.limits.max_retries or self.peers == (engine.control,):
            return False
        if charged and not engine.retries.allows(engine.now()):
            return False
        model = self._facts.model
        return bool(engine.candidates(engine.peers_for(model, self.head.path), model, self._tried))

    def _join_queue(self) -> None:
        engine = self._engine
        self._queued_at = self._queued_at or engine.now()
        priority = checks.priority_of(self.head, self._priority)
        if engine.waiting.join(self._facts.model or "", self.caller, self, priority):
            self.phase = RequestPhase.QUEUED
        else:
            self._fail(429, "queue_full", "too many requests wait for this model", self._retry_after())

    def _leave_queue(self) -> None:
        self._engine.waiting.leave(self._facts.model or "", self.caller, self)

    def _retry_after(self) -> tuple[bytes, bytes]:
        return b"retry-after", b"%d" % self._engine.waiting.retry_after_s(self._facts.model or "")

    def _nobody(self) -> tuple[int, str, str, tuple[bytes, bytes]]:
        """503, and why: the model was never seen, or nobody serves it now (docs/faults.md D6).

        Official clients ask again twice, and wait as told: for a name that only a typing error has, they are told not to.
        """
        model = self._facts.model
        retry_after = (b"retry-after", b"5")
        if self._tried:
            return 503, "no_replica_left", "every replica that could be tried failed", retry_after
        if model is not None and not self.peers:
            again = retry_after if self._engine.may_come(model) else (b"x-should-retry", b"false")
            return 503, "model_not_found", f"No healthy services available for model '{model}'", again
        return 503, "no_healthy_replica", "No healthy services available", retry_after

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self, *, keep_alive: bool = False, notify: bool = True) -> None:
        """The request is over, one way or another."""
        if self.phase is RequestPhase.DONE:
            return
        self.phase = RequestPhase.DONE
        engine = self._engine
        engine.exchanges.discard(self)
        engine.body_bytes -= len(self.body)
        share = engine.limits.access_log_sample
        if share and random.random() < share:  # noqa: S311 - a sample, no secret
            engine.log_lines.append(self._log_line())
        if engine.traces is not None and self.peers != (engine.control,):
            engine.traces.exchange_over(self, self._facts.model, self._status, self._attempts)
        self._attempt = self._writer = None  # ends the reference cycle here, not in the garbage collector
        if notify:
            self._client.exchange_done(keep_alive=keep_alive)

    def _drop(self, verdict: AttemptVerdict, outcome: AttemptOutcome) -> None:
        """Stop waiting and asking."""
        if self.phase is RequestPhase.QUEUED:
            self._leave_queue()
        if self._attempt is not None:
            self._attempt.drop(verdict, outcome)

    def _fail(self, status: int, code: str, message: str, *headers: tuple[bytes, bytes]) -> None:
        """Tell the client: by an answer if none has begun, else by an error event and an unclean end."""
        writer = self._writer
        if writer is None or not writer.begun:
            self._answer(status, answers.error_body(status, code, message, dialect_of(self.head.path)), *headers)
            return
        writer.fail(code, message)
        if writer.unframed:
            self._client.abort()
        self.finish(keep_alive=False)

    def _answer(self, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        """An answer in the router's own words."""
        self._status = status
        keep_alive = self.head.keep_alive and not self._engine.draining
        self._client.sink().write(
            answers.local_answer(
                status,
                body,
                keep_alive=keep_alive,
                head_only=self.head.method == b"HEAD",
                headers=((b"x-request-id", self.request_id), *headers),
                more_lines=self.head.cors,
            )
        )
        self.finish(keep_alive=keep_alive)

    def _answer_preflight(self, lines: bytes) -> None:
        """A browser asks without the page's key whether the page may ask."""
        self._status = 204
        keep_alive = self.head.keep_alive and not self._engine.draining
        self._client.sink().write(answers.preflight_answer(lines, keep_alive=keep_alive))
        self.finish(keep_alive=keep_alive)

    def _log_line(self) -> dict[str, object]:
        """The access log's fields: never a prompt, a key or an answer."""
        attempt = self._attempt
        first_byte_at = attempt.first_byte_at if attempt is not None else 0.0
        return {
            "request_id": self.request_id.decode(),
            **({"trace_id": f"{self.trace.trace_id:032x}"} if self.trace is not None else {}),
            "caller": self.caller,
            "path": self.head.path.decode(),
            "model": self._facts.model,
            "replica": attempt.endpoint.name if attempt is not None else None,
            "status": self._status,
            "attempts": self._attempts,
            "first_byte_ms": round((first_byte_at - self.started) * 1e3, 3) if first_byte_at else None,
            "duration_ms": round((self._engine.now() - self.started) * 1e3, 3),
            "request_bytes": len(self.body),
            "response_bytes": self._writer.sent_bytes if self._writer is not None else 0,
            **(attempt.story() if attempt is not None else {}),
        }

    # -- what goes out -----------------------------------------------------------------------------------------------

    def _own_lines(self) -> bytes:
        """The response fields that are the router's own."""
        lines = b"x-request-id: %b\r\nx-content-type-options: nosniff\r\n%b" % (self.request_id, self.head.cors)
        if self._attempts > 1:
            lines += b"x-attempts: %d\r\n" % self._attempts
        if self._engine.limits.served_by and self._attempt is not None:
            lines += b"x-served-by: %b\r\n" % self._attempt.endpoint.name.encode()
        return lines

    def _new_writer(self) -> ResponseWriter:
        engine, operation = self._engine, self._operation
        return ResponseWriter(
            self._client.sink(),
            http10=self.head.http10,
            keep_alive=self.head.keep_alive and not engine.draining,
            end_mark=operation.end_mark if operation is not None else EndMark.NONE,
            held_limit_bytes=engine.limits.held_limit_bytes,
            dialect=dialect_of(self.head.path),
            choices=self._facts.choices,
        )


def _request_id(given: bytes | None) -> bytes:
    """The client's id if it is printable and short, else a new one."""
    if given and len(given) <= _REQUEST_ID_LIMIT and given.isascii() and given.decode().isprintable():
        return given
    return b"%016x" % random.getrandbits(64)
