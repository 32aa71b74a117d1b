"""One request's life, from its checks to its end: what `dispatch.py` decides is carried out here.

    checks → (choose → [queue] → attempt)* → done

Whatever happens, `finish` runs once: it settles the counters and tells the client's connection.
"""

import random
from collections.abc import Sequence
from enum import Enum
from math import inf
from typing import Final
from urllib.parse import quote

from router import dispatch
from router.counters import RETRIES
from router.dispatch import Action, Dispatch, Failure, Judgement, LocalAnswer
from router.keys import Key
from router.model import Endpoint, Facts
from router.policy.parameters import differing
from router.policy.placed import PlacedRequest
from router.proxy import access_log, checks
from router.proxy.attempt import UpstreamAttempt
from router.proxy.engine import Engine
from router.proxy.explain import EXPLAINED, explain
from router.proxy.head import RequestHead, ResponseHead
from router.proxy.owner_search import may_have
from router.proxy.paths import KEY_FIELD, OWN_USAGE, PROXIED, SEES_FIELD
from router.proxy.patient import PatientRequest
from router.proxy.response_writer import ResponseWriter
from router.proxy.sides import ClientConnection

_NO_FACTS: Final = Facts()


class RequestPhase(Enum):
    """Where a request stands."""

    CHECKS = "checks"
    QUEUED = "queued"
    ASKING = "asking"
    DONE = "done"


class Exchange(PatientRequest):
    """One request of one client.

    Args:
        engine: The worker's shared state.
        client: The connection it came by.
        head: The request's head.
        body: The whole body, as it came.
    """

    # Most of these keep their defaults in most requests: class attributes cost nothing per request.
    _awaits_adapter = False

    def __init__(self, engine: Engine, client: ClientConnection, head: RequestHead, body: bytes) -> None:
        self._engine = engine
        self._client = client
        self.phase = RequestPhase.CHECKS
        self.facts = _NO_FACTS
        self.head = head
        self.body = body
        self.dispatch = Dispatch(engine.limits, head.operation)
        self.caller = client.peer
        self.peer_line = client.peer_line
        self.request_id = checks.request_id_of(head)
        self.started = engine.now()

    def __repr__(self) -> str:
        """For debugging."""
        path = self.head.path.decode("latin-1")
        return f"<Exchange {self.request_id.decode()} {path} {self.phase.value} {self._attempt}>"

    # -- its beginning ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let the request in, or answer why not."""
        engine, head = self._engine, self.head
        engine.exchanges.add(self)
        engine.body_bytes += len(self.body)
        if head.preflight is not None:
            self.answer_preflight(head.preflight)
            return
        try:
            key = checks.key_of(engine, head) if engine.needs.key else None
            if checks.check_path(engine, head, head.operation):
                self._ask_control(key)
                return
            self.facts = checks.facts_of(engine, head, self.body, head.operation)
            if head.deadlines:
                self.take_deadlines()
            if key is not None and not self.charge(key):
                return
        except checks.Rejected as rejected:
            self.fail(rejected.answer)
            return
        self.admitted()

    def admitted(self) -> None:
        """Its key covers it: look for who can answer."""
        response = checks.response_of(self.head.operation, self.facts)
        if response is None:
            self.go_on(None)
        else:
            self.find_owner(response, may_have(self._engine, self.facts.model, self._shown))

    def go_on(self, owner: Endpoint | None) -> None:
        """Send it where its model's name leads; `owner`: the one replica that can answer."""
        engine = self._engine
        if engine.chooser.rules.rules:
            before = len(self.body)
            try:
                self.head, self.body, self.facts = checks.follow_rules(
                    engine, self.head, self.body, self.facts, self.head.operation, owner=owner
                )
            except checks.Rejected as rejected:
                self.fail(rejected.answer)
                return
            if engine.chooser.rules.asks_usage:
                asked = checks.asking_usage(engine, self.head, self.body, self.facts)
                self.hides_usage = asked is not None
                self.body = self.body if asked is None else asked
            engine.body_bytes += len(self.body) - before
        if engine.limits.sse_keepalive_s and self.wants_events:
            self._comment_at = self.started + engine.limits.sse_keepalive_s
        self.note_translation()
        self.choose()

    def _ask_control(self, key: Key | None) -> None:
        """Answer from the router itself: its control plane, or this worker's own explanation."""
        engine, head = self._engine, self.head
        if head.path == b"/admin/explain" and head.method == b"POST":
            operation, body = PROXIED[EXPLAINED], self.body
            facts = checks.facts_of(engine, head, body, operation)
            if engine.chooser.rules.rules:
                _, body, facts = checks.follow_rules(engine, head, body, facts, operation)
            changed = differing(self.body, body) if body is not self.body and checks.is_json(head, body) else ()
            self.answer(200, explain(engine, facts, changed))
            return
        if key is not None or head.path == OWN_USAGE:  # whose usage, and who is in the audit
            name = quote(key.name, safe="") if key is not None else ""
            # After what the client sent: the last one counts.
            self.peer_line += b"%b: %b\r\n" % (KEY_FIELD, name.encode())
            if key is not None and not key.admin:
                self.peer_line += b"%b: own\r\n" % SEES_FIELD
        self.dispatch.ask_only(engine.control)
        self._ask(engine.control, None)

    # -- whom to ask -------------------------------------------------------------------------------------------------

    def choose(self) -> None:
        """Ask a replica, wait for one with room, or answer that there is none."""
        engine, model, tried = self._engine, self.facts.model, self.dispatch.tried
        if engine.needs.adapters and model and not tried and not self.owner_tag and engine.lacks_adapter(model):
            self._awaits_adapter = True
            engine.want_adapter(model, self.facts)
            self.join_queue()
            return
        # As they are now: it may have waited, or been tried elsewhere.
        if self.owner_tag:
            owner = self.owner()
            if owner is None:
                return
            peers: Sequence[Endpoint] = (owner,)
            candidates = peers
        else:
            peers = engine.peers_for(model, self.head.path)
            candidates = engine.candidates(peers, model, tried)
        if self._awaits_adapter and not candidates and not tried:
            self.fail(dispatch.ADAPTER_NOT_LOADED)
            return
        roomy = engine.with_room(candidates)
        may_come = not candidates and model is not None and engine.may_come(model)
        action = self.dispatch.choose(model, peers, candidates=len(candidates), roomy=len(roomy), may_come=may_come)
        if action is not Action.ASK:
            self._wait_or_answer(action)
            return
        now = engine.now()
        if self._queued_at:
            self.leave_queue(now)
        if not tried:
            engine.retries.note_request(now)
            if engine.needs.room:
                engine.begin_share(self)
        decision = engine.chooser.pick(roomy, self.facts, now)
        if self.translation is not None and not self.translate_for(decision.endpoint, self.translation):
            return
        self._ask(decision.endpoint, engine.chooser.placed(decision, self.facts, now))

    def _wait_or_answer(self, action: Action | LocalAnswer) -> None:
        """Nobody can be asked now."""
        if isinstance(action, LocalAnswer):
            if not self.hold(self.facts.model):
                self.fail(action)
            return
        if self.holds:
            self.begin_again(self._engine.now())
        self.join_queue()

    def _ask(self, endpoint: Endpoint, placement: PlacedRequest | None) -> None:
        engine = self._engine
        self.phase = RequestPhase.ASKING
        self.dispatch.asked(endpoint)
        if self.dispatch.attempts > 1:
            engine.counters.add(endpoint.slot, RETRIES)
            self.tells_more = True
        if engine.traces is not None and self.trace is None and not self.dispatch.is_own:
            self.trace = engine.traces.begin(self.head.forwarded, self.started)
        self._served_by = endpoint.name
        self.sent_head, self.sent_body = self._outgoing()
        self._attempt = self._new_attempt(endpoint, placement)
        self._attempt.begin()

    def _new_attempt(self, endpoint: Endpoint, placement: PlacedRequest | None) -> UpstreamAttempt:
        return UpstreamAttempt(self._engine, self, endpoint, placement)

    def join_queue(self) -> None:
        """Wait in the line of its model, or say that this is full."""
        engine, model = self._engine, self.facts.model or ""
        self._queued_at = self._queued_at or engine.now()
        priority = self.urgency
        if engine.deadlines and (answer := self.comes_too_late(engine.now(), priority)) is not None:
            self.fail(answer)
            return
        limit = engine.limits.hold_limit if self.holds else engine.limits.queue_limit
        if engine.waiting.join(model, self.caller, self, priority, limit):
            self.phase = RequestPhase.QUEUED
        else:
            seconds = engine.cold.retry_after_s(model) if self.holds else engine.waiting.retry_after_s(model)
            self.fail(dispatch.queue_is_full(seconds))

    @property
    def queued(self) -> bool:
        """True while it waits for a replica with room."""
        return self.phase is RequestPhase.QUEUED

    # -- from the attempt --------------------------------------------------------------------------------------------

    def forwarded_lines(self) -> bytes:
        """The client's header lines that go on to the replica."""
        traces, trace = self._engine.traces, self.trace
        lines = self.sent_head.forwarded_for_stream if self.wants_events else self.sent_head.forwarded
        return traces.forwarded(trace, lines) if traces is not None and trace is not None else lines

    def accept(self, head: ResponseHead) -> ResponseWriter | None:
        """Where the replica's response goes; None to ask another replica instead."""
        self._status = head.status
        engine, attempt = self._engine, self._attempt
        assert attempt is not None  # noqa: S101 - its answer is taken
        if self.translation is not None and self.lacks_call(head.status, attempt.endpoint, self.translation):
            return None
        if head.status in dispatch.RETRIED:
            action = self.dispatch.answered(
                head.status,
                begun=self.begun,
                others=self.has_others(),
                budget=engine.retries.allows(engine.now()),
                suspect=engine.suspects(attempt.endpoint, self.caller),
            )
            if action is Action.ASK:
                return None
        return self.relay(head, end_marked=attempt.endpoint.end_marked)

    def ask_another(self, judgement: Judgement) -> None:
        """The attempt was dropped for a response that another replica may better."""
        if self.translation is not None and self.translation.refused:
            self.fail(dispatch.NO_COUNT)
            return
        if judgement.charged:
            self._engine.retries.note_retry()
        self.choose()

    def attempt_failed(self, failure: Failure) -> None:
        """The attempt ended without a response."""
        engine, writer = self._engine, self._writer
        budget = engine.retries.allows(engine.now())
        action = self.dispatch.failed(failure, begun=self.begun, others=self.has_others(), budget=budget)
        if isinstance(action, LocalAnswer):
            self.fail(action)
            return
        if writer is not None and not writer.begun:
            self._writer = None
        self.ask_another(failure)

    def has_others(self) -> bool:
        """Somebody could be asked who was not asked yet."""
        engine, model = self._engine, self.facts.model
        return bool(engine.candidates(engine.peers_for(model, self.head.path), model, self.dispatch.tried))

    # -- from the client and the sweep -------------------------------------------------------------------------------

    def client_data(self, data: bytes) -> None:
        """Bytes from the client, once this is a tunnel."""
        raise NotImplementedError

    def set_paused(self, *, paused: bool) -> None:
        """The client cannot take more, or can again."""
        if self._attempt is not None:
            self._attempt.set_paused(paused=paused)

    def client_gone(self) -> None:
        """The client closed: stop the replica's work at once; nobody is to blame."""
        self._drop(dispatch.CLIENT_GONE)
        self.finish(notify=False)

    def expire(self) -> None:
        """The router stops and the drain's time is over."""
        self.give_up(dispatch.STOPPING)

    def check(self, now: float) -> None:
        """Called by the sweep: end what has taken too long, keep a waiting stream alive."""
        if self.phase is RequestPhase.DONE or self.changes_line():
            return
        if self._engine.deadlines:
            has_begun = self.begun or (self._attempt is not None and bool(self._attempt.first_byte_at))
            if self.check_deadline(now, has_begun=has_begun):
                return
        if self.queued and self.holds:
            self.check_hold(now)
            return
        sent_at = last_byte_at = inf
        attempt = self._attempt
        if attempt is not None:
            attempt.tell(self._engine.watch)
            if not self._client.paused:
                sent_at, last_byte_at = attempt.deadlines_from
        queued_at, retry_after_s = inf, 0
        if self.queued:
            queued_at, retry_after_s = self._queued_at, self._engine.waiting.retry_after_s(self.facts.model or "")
        failure = self.dispatch.overdue(
            now,
            self.started,
            sent_at=sent_at,
            last_byte_at=last_byte_at,
            queued_at=queued_at,
            retry_after_s=retry_after_s,
        )
        if failure is not None:
            self.give_up(failure)
        elif now > self._comment_at:
            self.break_silence(now, attempt.last_byte_at if attempt is not None else 0.0)

    # -- the end -----------------------------------------------------------------------------------------------------

    def give_up(self, failure: Failure) -> None:
        """Stop whatever it waits for, and say why."""
        self._drop(failure)
        self.fail(failure.answer)

    def _drop(self, judgement: Judgement) -> None:
        """Stop waiting, looking and asking."""
        self.stop_looking()
        if self.queued:
            self._engine.waiting.leave(self.facts.model or "", self.caller, self)
        if self._attempt is not None:
            self._attempt.drop(judgement)

    def _bytes_passed(self) -> tuple[int, int]:
        """To the replica, to the client."""
        return len(self.body), self._writer.sent_bytes if self._writer is not None else 0

    def finish(self, *, keep_alive: bool = False, notify: bool = True) -> None:
        """The request is over, one way or another."""
        if self.phase is RequestPhase.DONE:
            return
        self.phase = RequestPhase.DONE
        engine = self._engine
        engine.exchanges.discard(self)
        if engine.deadlines:
            engine.deadlines.pop(self, None)
        engine.body_bytes -= len(self.body)
        if self.translation is not None:
            engine.body_bytes -= self.translation.bytes_kept
            self._status = self.translation.status or self._status
        self.account_for(self._attempt)
        share = engine.limits.access_log_sample
        if share and random.random() < share:  # noqa: S311 - a sample, no secret
            passed = self._bytes_passed()
            engine.log_lines.append(
                access_log.line(self, self._attempt, status=self._status, passed=passed, now=engine.now())
            )
        if engine.traces is not None and not self.dispatch.is_own:
            trace = self.trace or engine.traces.begin(self.head.forwarded, self.started)
            engine.traces.request_over(
                trace,
                self.head,
                self.request_id,
                model=self.facts.model,
                status=self._status,
                attempts=self.dispatch.attempts,
            )
        self._attempt = self._writer = None  # ends the reference cycle here, not in the garbage collector
        if notify:
            self._client.exchange_done(keep_alive=keep_alive)
