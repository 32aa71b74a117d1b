"""One request's life: gate, candidates, attempts, outcome. Callbacks only; the hot path starts no task.

    gate → (choose → [queue] → connect → ask → relay)* → done

Another replica is asked only while the client has got no byte of an answer, never the same one twice, within
`max_retries` and the retry budget. Whatever happens, `_finish` runs once: it settles the counters and tells the
client's connection.
"""

import asyncio
import math
import secrets
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

from router import board as cells
from router.board import Outcome
from router.candidates import choose_from
from router.model import Endpoint, Facts
from router.outlier import Verdict
from router.proxy import answers, gate
from router.proxy.explain import explain
from router.proxy.head import RequestHead, ResponseHead
from router.proxy.headers import forwarded_lines
from router.proxy.paths import PROXIED, EndMark, upstream_path
from router.proxy.relay import Relay
from router.proxy.upstream import Broken, Upstream
from router.retry import budget_allows

if TYPE_CHECKING:
    from router.proxy.downstream import Downstream
    from router.proxy.engine import Engine

_OK, _CLIENT_ERROR, _SERVER_ERROR = 200, 400, 500
_BUSY = frozenset({429, 503})
_TRY_ELSEWHERE = _BUSY | {502, 504}
"""Answers that say "not me, not now": another replica may do better, else they pass through (FAILURES.md A20)."""
_REQUEST_ID_LIMIT = 128


class Phase(Enum):
    """Where an exchange stands."""

    GATE = "gate"
    QUEUED = "queued"
    CONNECTING = "connecting"
    WAITING = "waiting"
    """Sent; no byte of an answer yet."""
    RELAYING = "relaying"
    DONE = "done"


class Exchange:
    """One request of one client.

    Args:
        engine: The worker's shared state.
        client: The connection it came by.
        head: The request's head.
        body: The whole body, as it came.
    """

    __slots__ = (
        "_attempts",
        "_body",
        "_client",
        "_comment_at",
        "_connecting",
        "_deadline",
        "_endpoint",
        "_engine",
        "_facts",
        "_first_byte_at",
        "_head",
        "_last_byte_at",
        "_lines",
        "_operation",
        "_peers",
        "_queued_at",
        "_relay",
        "_retries",
        "_served_by",
        "_stale_retried",
        "_status",
        "_tried",
        "_upstream",
        "caller",
        "phase",
        "request_id",
        "started",
    )

    def __init__(self, engine: "Engine", client: "Downstream", head: RequestHead, body: bytes) -> None:
        self._engine = engine
        self._client = client
        self._head = head
        self._body = body
        self._facts = Facts()
        self._operation = PROXIED.get(head.path)
        self._peers: Sequence[Endpoint] = ()
        self._tried: set[str] = set()
        self._attempts = 0
        self._retries = 0
        self._endpoint: Endpoint | None = None
        self._served_by = ""
        self._upstream: Upstream | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._relay: Relay | None = None
        self._stale_retried = False
        self._status = 0
        self._lines = b""
        self._deadline = self._comment_at = math.inf
        self._queued_at = self._first_byte_at = self._last_byte_at = 0.0
        self.caller = client.peer
        self.phase = Phase.GATE
        self.request_id = _request_id(head.request_id)
        self.started = engine.now()

    # -- from the client ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let the request in, or answer why not."""
        engine, head = self._engine, self._head
        engine.exchanges.add(self)
        engine.body_bytes += len(self._body)
        try:
            key = gate.key_of(engine, head)
            if gate.check_path(engine, head, self._operation):
                self._ask_control()
                return
            self._facts = gate.facts_of(engine, head, self._body, self._operation)
            if key is not None:
                self.caller = key.name
                refusal = engine.keys.allows(key, self._facts.model, self.started)
                if refusal is not None:
                    raise gate.refuse(refusal)
        except gate.Refused as refused:
            self._answer(refused.status, refused.code, str(refused), *refused.headers)
            return
        self._peers = engine.peers(self._facts.model)
        if self._facts.stream and engine.limits.sse_keepalive_s:
            self._comment_at = self.started + engine.limits.sse_keepalive_s
        self._prepare()
        self.choose()

    def client_gone(self) -> None:
        """The client closed: stop the replica's work at once; nobody is to blame."""
        self._drop_upstream(Verdict.NEUTRAL, Outcome.CLIENT_GONE)
        self._finish(notify=False)

    def client_paused(self) -> None:
        """The client cannot take more."""
        if self._upstream is not None:
            self._upstream.pause()

    def client_resumed(self) -> None:
        """The client can take more again."""
        self._deadline = self._engine.now() + self._engine.limits.idle_timeout_s
        if self._upstream is not None:
            self._upstream.resume()

    def expire(self) -> None:
        """The router stops and the drain's time is over."""
        self._drop_upstream(Verdict.NEUTRAL, Outcome.CLIENT_GONE)
        self._fail(503, "router_stopping", "the router is stopping")

    def check(self, now: float) -> None:
        """Called by the sweep: end what has taken too long, keep a waiting stream alive."""
        limits = self._engine.limits
        if now - self.started > limits.total_timeout_s:
            self._time_out("request_timeout", f"not answered within {limits.total_timeout_s:g} s")
        elif now > self._deadline and not self._client.paused:
            if self.phase is Phase.QUEUED:
                self._leave_queue()
                self._fail(503, "queue_timeout", "no replica had room in time", self._retry_after())
            elif self.phase is Phase.WAITING:
                self._time_out("first_byte_timeout", "the replica sent no answer in time")
            elif self.phase is Phase.RELAYING:
                self._time_out("idle_timeout", "the replica stopped sending")
        elif now > self._comment_at and not self._first_byte_at:
            self._comment_at = now + limits.sse_keepalive_s
            if self._relay is None:
                self._relay = self._new_relay()
            self._relay.comment(self._own_lines())

    # -- from the replica's connection -------------------------------------------------------------------------------

    def on_head(self, head: ResponseHead) -> None:
        """The replica's answer begins."""
        self._status = head.status
        if head.status in _TRY_ELSEWHERE and self._can_retry():
            busy = head.status in _BUSY
            self._drop_upstream(
                Verdict.NEUTRAL if busy else Verdict.SERVER_ERROR, Outcome.BUSY if busy else Outcome.SERVER_ERROR
            )
            self._retry()
            return
        self.phase = Phase.RELAYING
        self._deadline = self._engine.now() + self._engine.limits.idle_timeout_s
        if self._relay is None:
            self._relay = self._new_relay()
        self._relay.start(head, self._own_lines())

    def on_body(self, data: bytes, *, framed: bool) -> None:
        """Bytes of the answer."""
        relay, engine = self._relay, self._engine
        assert relay is not None  # noqa: S101 - a body follows a head
        now = engine.now()
        endpoint = self._endpoint
        if endpoint is not None:
            if not self._first_byte_at:
                self._first_byte_at = now
                engine.board.observe(endpoint.slot, cells.FIRST_BYTE, now - self.started)
            elif relay.is_stream:
                engine.board.observe(endpoint.slot, cells.GAP, now - self._last_byte_at)
        self._last_byte_at = now
        self._deadline = now + engine.limits.idle_timeout_s
        relay.body(data, framed=framed)

    def on_end(self) -> None:
        """The answer is complete, as far as its framing goes."""
        relay = self._relay
        assert relay is not None  # noqa: S101 - an end follows a head
        self._upstream = None
        if not relay.complete():
            self._settle(Verdict.FAULT, Outcome.TRUNCATED)
            self._broken("upstream_truncated", "the replica ended its answer before it was complete")
            return
        relay.end()
        self._settle(*_judge(self._status))
        self._finish(keep_alive=relay.keep_alive)

    def on_broken(self, how: Broken) -> None:
        """The connection failed before the answer was complete."""
        self._upstream = None
        endpoint = self._endpoint
        if how is Broken.STALE and not self._stale_retried and endpoint is not None:
            # The server closed an idle connection as we wrote to it: no fault, no attempt (D9).
            self._stale_retried = True
            self._begin_connect(endpoint)
        elif how is Broken.MALFORMED:
            self._settle(Verdict.FAULT, Outcome.MALFORMED)
            self._broken("upstream_malformed", "the replica's answer is no valid HTTP", charged=True)
        else:
            self._settle(Verdict.FAULT, Outcome.DIED)
            self._broken("upstream_died", "the replica closed the connection before its answer was complete")

    # -- attempts ----------------------------------------------------------------------------------------------------

    def choose(self) -> None:
        """Pick a replica and ask it, or wait for one with room. Also called when the queue lets this one go."""
        engine = self._engine
        candidates = choose_from(self._peers, self._tried, engine.outliers, engine.now()).endpoints
        if not candidates:
            self._answer(*self._nobody())
            return
        if engine.has_limits:
            roomy = [endpoint for endpoint in candidates if engine.has_room(endpoint)]
            if not roomy:
                self._wait_for_room()
                return
            candidates = roomy
        if self._queued_at:
            engine.board.observe(engine.control.slot, cells.QUEUE_WAIT, engine.now() - self._queued_at)
            self._queued_at = 0.0
        self._attempt(engine.chooser.pick(candidates, self._facts))

    def _wait_for_room(self) -> None:
        engine = self._engine
        now = engine.now()
        self._queued_at = self._queued_at or now
        if not engine.waiting.join(self._facts.model or "", self.caller, self):
            self._fail(429, "queue_full", "too many requests wait for this model", self._retry_after())
            return
        self.phase = Phase.QUEUED
        self._deadline = self._queued_at + engine.limits.queue_timeout_s

    def _leave_queue(self) -> None:
        self._engine.waiting.leave(self._facts.model or "", self.caller, self)

    def _retry_after(self) -> tuple[bytes, bytes]:
        return b"retry-after", b"%d" % self._engine.waiting.retry_after_s(self._facts.model or "")

    def _ask_control(self) -> None:
        """Answer from the router itself: its control plane, or this worker's own explanation."""
        engine, head = self._engine, self._head
        if head.path == b"/admin/explain" and head.method == b"POST":
            facts = gate.facts_of(engine, head, self._body, PROXIED[b"/chat/completions"])
            self._write_answer(_OK, explain(engine, facts))
            return
        self._peers = (engine.control,)
        self._prepare()
        self._attempt(engine.control)

    def _attempt(self, endpoint: Endpoint) -> None:
        engine = self._engine
        self._tried.add(endpoint.id)
        self._attempts += 1
        self._endpoint = endpoint
        self._served_by = endpoint.name
        self._stale_retried = False
        engine.begin_attempt(endpoint)
        if self._attempts > 1:
            engine.board.add(endpoint.slot, cells.RETRIES)
        connection = engine.pool(endpoint).take()
        if connection is None:
            self._begin_connect(endpoint)
        else:
            self._send(endpoint, connection)

    def _begin_connect(self, endpoint: Endpoint) -> None:
        self.phase = Phase.CONNECTING
        self._deadline = math.inf  # the connect has its own
        self._connecting = self._engine.scope.spawn("connect", self._connect(endpoint))

    async def _connect(self, endpoint: Endpoint) -> None:
        try:
            connection = await self._engine.connect(endpoint)
        except (OSError, TimeoutError) as error:
            self._connecting = None
            refused = isinstance(error, ConnectionRefusedError)
            self._settle(Verdict.REFUSED if refused else Verdict.FAULT, Outcome.CONNECT_FAILED)
            self._broken("connect_failed", "no replica could be reached", status=503)
            return
        self._connecting = None
        self._send(endpoint, connection)

    def _send(self, endpoint: Endpoint, connection: Upstream) -> None:
        self.phase = Phase.WAITING
        self._deadline = self._engine.now() + self._engine.limits.first_byte_timeout_s
        self._upstream = connection
        head = self._head
        path = upstream_path(head.path, self._operation, endpoint.api_prefix)
        request = b"%b %b%b%b HTTP/1.1\r\nhost: %b\r\n%b" % (
            head.method,
            path,
            b"?" if head.query else b"",
            head.query,
            endpoint.authority.encode(),
            self._lines,
        )
        connection.send(self, request, self._body, to_head_request=head.method == b"HEAD", raw_chunks=not head.http10)

    def _retry(self, *, charged: bool = True) -> None:
        if charged:
            self._retries += 1
            self._engine.retrying += 1
        self.choose()

    def _can_retry(self, *, charged: bool = True) -> bool:
        """Another replica may be tried; `charged` to the retry budget or not."""
        engine = self._engine
        if self._relay is not None and self._relay.answered:
            return False
        if self._attempts > engine.limits.max_retries or self._peers == (engine.control,):
            return False
        if charged and not budget_allows(engine.retrying, len(engine.exchanges)):
            return False
        return bool(choose_from(self._peers, self._tried, engine.outliers, engine.now()).endpoints)

    def _broken(self, code: str, message: str, *, status: int = 502, charged: bool = False) -> None:
        """An attempt failed: try elsewhere, or tell the client.

        The budget is against storms on replicas that struggle. A replica that is gone does no work for its requests any
        more, so moving them, all at once, adds no load to what was admitted; charged, a death would lose those of its
        requests that exceed the budget (A1, A2 against D8).
        """
        if self._can_retry(charged=charged):
            if self._relay is not None and not self._relay.begun:
                self._relay = None
            self._first_byte_at = 0.0
            self._retry(charged=charged)
        else:
            self._fail(status, code, message)

    def _time_out(self, code: str, message: str) -> None:
        self._drop_upstream(Verdict.FAULT, Outcome.TIMED_OUT)
        self._fail(504, code, message)

    def _drop_upstream(self, verdict: Verdict, outcome: Outcome) -> None:
        """Close the replica's leg, in whatever phase it is."""
        if self.phase is Phase.QUEUED:
            self._leave_queue()
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None
        self._settle(verdict, outcome)

    def _settle(self, verdict: Verdict, outcome: Outcome) -> None:
        """The attempt is over: count it once."""
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is None:
            return
        engine = self._engine
        engine.end_attempt(endpoint)
        if endpoint is engine.control:
            return
        now, board, slot = engine.now(), engine.board, endpoint.slot
        board.add(slot, cells.REQUESTS)
        board.add(slot, cells.OUTCOMES + outcome)
        board.add(slot, cells.BYTES_IN, len(self._body))
        board.add(slot, cells.BYTES_OUT, self._relay.sent_bytes if self._relay is not None else 0)
        board.observe(slot, cells.DURATION, now - self.started)
        if verdict not in (Verdict.GOOD, Verdict.NEUTRAL):
            board.add(slot, cells.ERRORS)
        if engine.outliers.note(endpoint, verdict, self.caller, self._peers, now):
            board.add(slot, cells.EJECTIONS)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _fail(self, status: int, code: str, message: str, *headers: tuple[bytes, bytes]) -> None:
        """Tell the client: by an answer if none has begun, else by an error event and an unclean end."""
        relay = self._relay
        if relay is None or not relay.begun:
            self._answer(status, code, message, *headers)
            return
        relay.fail(code, message)
        if relay.unframed:
            self._client.abort()
        self._finish(keep_alive=False)

    def _answer(self, status: int, code: str, message: str, *headers: tuple[bytes, bytes]) -> None:
        """An error in the router's own words."""
        if self._relay is not None and self._relay.begun:
            self._fail(status, code, message)
        else:
            self._write_answer(status, answers.error_body(status, code, message), *headers)

    def _write_answer(self, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        self._status = status
        keep_alive = self._head.keep_alive and not self._engine.draining
        self._client.sink().write(
            answers.local_answer(
                status,
                body,
                keep_alive=keep_alive,
                head_only=self._head.method == b"HEAD",
                headers=((b"x-request-id", self.request_id), *headers),
            )
        )
        self._finish(keep_alive=keep_alive)

    def _nobody(self) -> tuple[int, str, str, tuple[bytes, bytes]]:
        """503, and why: the model was never seen, or nobody serves it now (FAILURES.md D6)."""
        model = self._facts.model
        retry_after = (b"retry-after", b"5")
        if self._tried:
            return 503, "no_replica_left", "every replica that could be tried failed", retry_after
        if model is not None and not self._peers:
            return 503, "model_not_found", f"No healthy services available for model '{model}'", retry_after
        return 503, "no_healthy_replica", "No healthy services available", retry_after

    def _finish(self, *, keep_alive: bool = False, notify: bool = True) -> None:
        if self.phase is Phase.DONE:
            return
        self.phase = Phase.DONE
        engine = self._engine
        engine.exchanges.discard(self)
        engine.body_bytes -= len(self._body)
        engine.retrying -= self._retries
        if engine.wants_log_line():
            engine.log_lines.append(self._log_line())
        if notify:
            self._client.exchange_done(keep_alive=keep_alive)
        engine.exchange_ended()

    def _log_line(self) -> dict[str, object]:
        """The access log's fields: never a prompt, a key or an answer."""
        now = self._engine.now()
        return {
            "request_id": self.request_id.decode(),
            "caller": self.caller,
            "path": self._head.path.decode(),
            "model": self._facts.model,
            "replica": self._served_by or None,
            "status": self._status,
            "attempts": self._attempts,
            "first_byte_ms": round((self._first_byte_at - self.started) * 1e3, 3) if self._first_byte_at else None,
            "duration_ms": round((now - self.started) * 1e3, 3),
            "request_bytes": len(self._body),
            "response_bytes": self._relay.sent_bytes if self._relay is not None else 0,
        }

    # -- what goes out -----------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """The request's lines that are the same at every attempt."""
        head = self._head
        length = b"content-length: %d\r\n" % len(self._body) if self._body or head.method == b"POST" else b""
        self._lines = b"%bx-forwarded-for: %b\r\nx-request-id: %b\r\n%b\r\n" % (
            forwarded_lines(head, self._engine.forwarded),
            self._client.peer.encode(),
            self.request_id,
            length,
        )

    def _own_lines(self) -> bytes:
        """The response fields that are the router's own."""
        lines = b"x-request-id: %b\r\nx-content-type-options: nosniff\r\n" % self.request_id
        if self._attempts > 1:
            lines += b"x-attempts: %d\r\n" % self._attempts
        if self._engine.limits.served_by and self._served_by:
            lines += b"x-served-by: %b\r\n" % self._served_by.encode()
        return lines

    def _new_relay(self) -> Relay:
        engine = self._engine
        mark = self._operation.end_mark if self._operation is not None else EndMark.NONE
        return Relay(
            self._client.sink(),
            http10=self._head.http10,
            keep_alive=self._head.keep_alive and not engine.draining,
            end_mark=mark,
            held_limit_bytes=engine.limits.held_limit_bytes,
        )


def _request_id(given: bytes | None) -> bytes:
    """The client's id if it is printable and short, else a new one."""
    if given and len(given) <= _REQUEST_ID_LIMIT and given.isascii() and given.decode().isprintable():
        return given
    return secrets.token_hex(8).encode()


def _judge(status: int) -> tuple[Verdict, Outcome]:
    """What a whole answer with `status` says of its replica."""
    if status < _CLIENT_ERROR:
        return Verdict.GOOD, Outcome.OK
    if status in _BUSY:
        return Verdict.NEUTRAL, Outcome.BUSY
    if status < _SERVER_ERROR:
        return Verdict.NEUTRAL, Outcome.CLIENT_ERROR
    return Verdict.SERVER_ERROR, Outcome.SERVER_ERROR
