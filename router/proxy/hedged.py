"""A request that waits unusually long for its first byte gets a second copy elsewhere (docs/streams.md)."""

import asyncio

from router.counters import HEDGES, HEDGES_WON, IN_FLIGHT
from router.facts import stores
from router.model import ABLE, Endpoint
from router.policy.models import ModelRule
from router.proxy.attempt import UpstreamAttempt
from router.proxy.exchange import RequestPhase
from router.proxy.racing import RacedRequest, RacingAttempt
from router.streams.continuation import CHAT, COMPLETIONS
from router.streams.hedging import BUSY_LIMIT, Kind, busy_share

_HEDGED = (CHAT, COMPLETIONS, b"/embeddings")
"""Operations that leave nothing behind, and whose bodies are small."""


class HedgedRequest(RacedRequest):
    """One request of one client; for the arguments see `Exchange`."""

    _waits_as: Kind | None = None
    """Set while its first byte has not come, and a copy may be sent."""
    _waits_from = 0.0
    _timer: asyncio.TimerHandle | None = None
    _copy_at: Endpoint | None = None
    _copied_at = 0.0

    def begin_wait(self, rule: ModelRule, endpoint: Endpoint) -> None:
        """It is sent for the first time, to `endpoint`."""
        engine, facts, operation = self._engine, self.facts, self.head.operation
        if not rule.hedge or operation is None or operation.name not in _HEDGED or facts.model is None:
            return
        if facts.previous_response is not None or self.owner_tag or stores(self.body):
            return
        kind, due_s = engine.hedges.begin(facts.model, operation.name, facts.prompt_bytes, stream=facts.stream)
        self._waits_as = kind
        self._waits_from = engine.now()
        if engine.hedges.tries(endpoint.id, self._waits_from):
            engine.chooser.passed_over |= {endpoint.id}
        if due_s:
            self._timer = asyncio.get_running_loop().call_later(due_s, self._send_copy)

    def _send_copy(self) -> None:
        """No byte has come when it usually does."""
        engine, model, tried = self._engine, self.facts.model, self.dispatch.tried
        self._timer = None
        if self._waits_as is None or self._second is not None or self.phase is not RequestPhase.ASKING:
            return
        peers = engine.peers(model)
        candidates = engine.with_room(engine.candidates(peers, model, tried))
        pool = [(one, engine.counters.total(one.slot, IN_FLIGHT)) for one in peers if one.eligibility in ABLE]
        if not candidates or busy_share(pool) >= BUSY_LIMIT or not engine.hedges.take():
            return
        now = engine.now()
        decision = engine.chooser.pick(candidates, self.facts, now)
        endpoint = self._copy_at = decision.endpoint
        self.dispatch.tried = (*tried, endpoint.id)
        self._copied_at = now
        engine.counters.add(endpoint.slot, HEDGES)
        placement = engine.chooser.placed(decision, self.facts, now)
        self._second = RacingAttempt(engine, self, endpoint, placement, holds_head=True)
        self._second.begin()

    def win(self, attempt: UpstreamAttempt) -> None:
        """It is the answer."""
        kind, first, engine, hedges = self._waits_as, self._attempt, self._engine, self._engine.hedges
        if kind is not None and first is not None:
            now = engine.now()
            hedges.note(kind, first.endpoint.id, now - self._waits_from)
            if attempt is not first:
                hedges.note(kind, attempt.endpoint.id, now - self._copied_at)
                if hedges.was_beaten(first.endpoint.id, self._waits_from, now):
                    engine.chooser.passed_over |= {first.endpoint.id}
                engine.counters.add(attempt.endpoint.slot, HEDGES_WON)
                self._served_by = attempt.endpoint.name
            elif self._second is not None or self._timer is not None:
                hedges.was_first(first.endpoint.id)
            self.end_wait()
        super().win(attempt)

    def end_wait(self) -> None:
        """No copy is sent any more."""
        self._waits_as = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check(self, now: float) -> None:
        """Called by the sweep."""
        if self._second is not None:
            self._second.tell(self._engine.watch)
        super().check(now)

    def more_told(self) -> dict[str, object]:
        """Of the access log."""
        return {"copy_at": self._copy_at.name} if self._copy_at is not None else {}

    def finish(self, *, keep_alive: bool = False, notify: bool = True) -> None:
        """The request is over, one way or another."""
        self.end_wait()
        super().finish(keep_alive=keep_alive, notify=notify)
