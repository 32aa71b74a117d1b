"""One request's life: facts, candidates, attempts, outcome. Callbacks only; the hot path starts no task.

    read → (choose → connect → ask → relay)* → done

Another replica is asked only while the client has not got a byte, never the same one twice, within `max_retries` and
the retry budget. Whatever happens, `_finish` runs once: it settles the counters and tells the client's connection.
"""

import asyncio
import secrets
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

from router import board as cells
from router.candidates import choose_from
from router.facts import BadBody, forwarded_affinity, read_json, read_multipart
from router.model import Endpoint, Facts
from router.outlier import Verdict
from router.proxy import answers
from router.proxy.head import RequestHead, ResponseHead
from router.proxy.headers import forwarded_lines
from router.proxy.paths import PROXIED, EndMark, is_control, upstream_path
from router.proxy.relay import Relay
from router.proxy.upstream import Broken, Upstream
from router.retry import budget_allows

if TYPE_CHECKING:
    from router.proxy.downstream import Downstream
    from router.proxy.engine import Engine

_TRY_ELSEWHERE = frozenset({429, 502, 503, 504})
"""Answers that say "not me, not now": another replica may do better, else they pass through (FAILURES.md A20)."""
_SERVER_ERROR = 500
_REQUEST_ID_LIMIT = 128


class Phase(Enum):
    """Where an exchange stands."""

    READING = "reading"
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
        "_connecting",
        "_deadline",
        "_endpoint",
        "_engine",
        "_facts",
        "_head",
        "_lines",
        "_operation",
        "_peers",
        "_relay",
        "_retries",
        "_stale_retried",
        "_status",
        "_tried",
        "_upstream",
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
        self._endpoint: Endpoint | None = None
        self._upstream: Upstream | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._relay: Relay | None = None
        self._retries = 0
        self._stale_retried = False
        self._status = 0
        self._lines = b""
        self._deadline = 0.0
        self.phase = Phase.READING
        self.request_id = _request_id(head.request_id)
        self.started = engine.now()

    # -- from the client ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Route the request."""
        self._engine.exchanges.add(self)
        self._engine.body_bytes += len(self._body)
        head = self._head
        if self._operation is None and is_control(head.path):
            self._peers = (self._engine.control,)
            self._prepare()
            self._attempt(self._engine.control)
            return
        if self._operation is None and not self._is_extra_path(head.path):
            self._answer(404, "unknown_path", "the router serves no such path")
            return
        if self._operation is not None and head.method != b"POST":
            self._answer(405, "method_not_allowed", "this path takes POST")
            return
        try:
            self._facts = self._read_facts()
        except BadBody as error:
            self._answer(400, "invalid_body", str(error))
            return
        table, model = self._engine.table, self._facts.model
        self._peers = table.endpoints if model is None else table.by_model.get(model, ())
        self._prepare()
        self._choose()

    def client_gone(self) -> None:
        """The client closed: stop the replica's work at once; nobody is to blame."""
        self._drop_upstream(Verdict.NEUTRAL)
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
        self._drop_upstream(Verdict.NEUTRAL)
        self._fail("router_stopping", "the router is stopping", status=503)

    def check(self, now: float) -> None:
        """Called by the sweep: end what has taken too long."""
        limits = self._engine.limits
        if now - self.started > limits.total_timeout_s:
            self._time_out("request_timeout", f"not answered within {limits.total_timeout_s:g} s")
        elif now > self._deadline and not self._client.paused:
            if self.phase is Phase.WAITING:
                self._time_out("first_byte_timeout", "the replica sent no answer in time")
            elif self.phase is Phase.RELAYING:
                self._time_out("idle_timeout", "the replica stopped sending")

    # -- from the replica's connection -------------------------------------------------------------------------------

    def on_head(self, head: ResponseHead) -> None:
        """The replica's answer begins."""
        if head.status in _TRY_ELSEWHERE and self._endpoint is not self._engine.control and self._can_retry():
            verdict = Verdict.NEUTRAL if head.status in (429, 503) else Verdict.SERVER_ERROR
            self._drop_upstream(verdict)
            self._retry()
            return
        self._status = head.status
        self.phase = Phase.RELAYING
        self._deadline = self._engine.now() + self._engine.limits.idle_timeout_s
        mark = self._operation.end_mark if self._operation is not None and head.status == 200 else EndMark.NONE  # noqa: PLR2004
        self._relay = Relay(
            self._client.sink(),
            http10=self._head.http10,
            keep_alive=self._head.keep_alive and not self._engine.draining,
            end_mark=mark,
            held_limit_bytes=self._engine.limits.held_limit_bytes,
        )
        extra = b"x-request-id: %b\r\nx-content-type-options: nosniff\r\n" % self.request_id
        if self._attempts > 1:
            extra += b"x-attempts: %d\r\n" % self._attempts
        self._relay.start(head, extra)

    def on_body(self, data: bytes, *, framed: bool) -> None:
        """Bytes of the answer."""
        assert self._relay is not None  # noqa: S101 - a body follows a head
        self._deadline = self._engine.now() + self._engine.limits.idle_timeout_s
        self._relay.body(data, framed=framed)

    def on_end(self) -> None:
        """The answer is complete, as far as its framing goes."""
        relay = self._relay
        assert relay is not None  # noqa: S101 - an end follows a head
        if not relay.complete():
            self._upstream = None
            self._settle(Verdict.FAULT)
            self._broken("upstream_truncated", "the replica ended the stream without its end mark")
            return
        self._upstream = None
        self._settle(Verdict.SERVER_ERROR if self._status >= _SERVER_ERROR else _verdict_of(self._status))
        relay.end()
        self._finish(keep_alive=relay.keep_alive)

    def on_broken(self, how: Broken) -> None:
        """The connection failed before the answer was complete."""
        self._upstream = None
        if how is Broken.STALE and not self._stale_retried and self._endpoint is not None:
            # The server closed an idle connection as we wrote to it: no fault, no attempt (D9).
            self._stale_retried = True
            endpoint = self._endpoint
            self._begin_connect(endpoint)
            return
        self._settle(Verdict.FAULT)
        if how is Broken.MALFORMED:
            self._broken("upstream_malformed", "the replica's answer is no valid HTTP", charged=True)
        else:
            self._broken("upstream_died", "the replica closed the connection before its answer was complete")

    # -- attempts ----------------------------------------------------------------------------------------------------

    def _choose(self) -> None:
        engine = self._engine
        choice = choose_from(self._peers, self._tried, engine.outliers, engine.now())
        if not choice.endpoints:
            self._answer(*self._nobody())
            return
        self._attempt(engine.chooser.pick(choice.endpoints, self._facts))

    def _attempt(self, endpoint: Endpoint) -> None:
        self._tried.add(endpoint.id)
        self._attempts += 1
        self._endpoint = endpoint
        self._stale_retried = False
        self._engine.begin_attempt(endpoint)
        if self._attempts > 1:
            self._engine.count(endpoint.slot, cells.RETRIES)
        connection = self._engine.pool(endpoint).take()
        if connection is None:
            self._begin_connect(endpoint)
        else:
            self._send(endpoint, connection)

    def _begin_connect(self, endpoint: Endpoint) -> None:
        self.phase = Phase.CONNECTING
        self._connecting = self._engine.scope.spawn("connect", self._connect(endpoint))

    async def _connect(self, endpoint: Endpoint) -> None:
        try:
            connection = await self._engine.connect(endpoint)
        except (OSError, TimeoutError) as error:
            self._connecting = None
            self._settle(Verdict.REFUSED if isinstance(error, ConnectionRefusedError) else Verdict.FAULT)
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
        self._choose()

    def _can_retry(self, *, charged: bool = True) -> bool:
        """Another replica may be tried; `charged` to the retry budget or not."""
        engine = self._engine
        if self._relay is not None and self._relay.begun:
            return False
        if self._attempts > engine.limits.max_retries or self._endpoint is engine.control:
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
            self._relay = None
            self._retry(charged=charged)
        else:
            self._fail(code, message, status=status)

    def _time_out(self, code: str, message: str) -> None:
        self._drop_upstream(Verdict.FAULT)
        self._fail(code, message, status=504)

    def _fail(self, code: str, message: str, *, status: int) -> None:
        """Tell the client: by an answer if none has begun, else by an error event and an unclean end."""
        relay = self._relay
        if relay is None or not relay.begun:
            self._answer(status, code, message)
            return
        relay.fail(code, message)
        if relay.unframed:
            self._client.abort()
        self._finish(keep_alive=False)

    def _drop_upstream(self, verdict: Verdict) -> None:
        """Close the replica's leg, in whatever phase it is."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None
        self._settle(verdict)

    def _settle(self, verdict: Verdict) -> None:
        """The attempt is over: count it once."""
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is None:
            return
        engine = self._engine
        engine.end_attempt(endpoint)
        if endpoint is engine.control:
            return
        now = engine.now()
        engine.count(endpoint.slot, cells.REQUESTS)
        engine.count(endpoint.slot, cells.LATENCY_US, int((now - self.started) * 1e6))
        if verdict not in (Verdict.GOOD, Verdict.NEUTRAL):
            engine.count(endpoint.slot, cells.ERRORS)
        engine.outliers.note(endpoint, verdict, self._client.peer, self._peers, now)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _answer(self, status: int, code: str, message: str, *headers: tuple[bytes, bytes]) -> None:
        """Answer in the router's own words."""
        keep_alive = self._head.keep_alive and not self._engine.draining
        self._client.sink().write(
            answers.local_answer(
                status,
                answers.error_body(status, code, message),
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
        if notify:
            self._client.exchange_done(keep_alive=keep_alive)
        if engine.draining:
            engine.exchange_ended()

    # -- reading -----------------------------------------------------------------------------------------------------

    def _read_facts(self) -> Facts:
        head = self._head
        forwarded = forwarded_affinity(head.forwarded_for, head.user_agent)
        if head.content_type[:19].lower() == b"multipart/form-data":
            return read_multipart(self._body, forwarded=forwarded)
        if self._operation is None and not head.content_type.lower().startswith(b"application/json"):
            return Facts(affinity=forwarded)
        return read_json(self._body, want_text=self._engine.has_cache_types, forwarded=forwarded)

    def _is_extra_path(self, path: bytes) -> bool:
        return self._engine.limits.any_path or path in self._engine.limits.extra_paths

    def _prepare(self) -> None:
        """The request's lines that are the same at every attempt."""
        head = self._head
        length = b"content-length: %d\r\n" % len(self._body) if self._body or head.method == b"POST" else b""
        self._lines = b"%bx-forwarded-for: %b\r\nx-request-id: %b\r\n%b\r\n" % (
            forwarded_lines(head, self._engine.limits.forwarded),
            self._client.peer.encode(),
            self.request_id,
            length,
        )


def _request_id(given: bytes | None) -> bytes:
    """The client's id if it is printable and short, else a new one."""
    if given and len(given) <= _REQUEST_ID_LIMIT and given.isascii() and given.decode().isprintable():
        return given
    return secrets.token_hex(8).encode()


def _verdict_of(status: int) -> Verdict:
    return Verdict.GOOD if status < 400 else Verdict.NEUTRAL  # noqa: PLR2004 - the client's own fault says nothing
