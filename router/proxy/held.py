"""The half of a request that waits for a deployment's replica to start (docs/adr/0013), and counts how long it waited.

Requests whose model has a replica with room do not come by here.
"""

from typing import Final

from router import dispatch
from router.counters import QUEUE_WAIT, AttemptOutcome
from router.dispatch import Failure
from router.outlier import AttemptVerdict
from router.proxy.owned import OwnedRequest

FIRST_COMMENT_S: Final = 0.5
"""After so long a held stream is begun, to be told how its model stands; a start that fails at once is still an honest 503."""
COMMENT_EACH_S: Final = 1.0
"""No comment comes sooner after the one before, however things change."""


class HeldRequest(OwnedRequest):
    """What `TimedRequest` is made on."""

    # These keep their defaults in most requests: class attributes cost nothing per request.
    _queued_at = 0.0
    holds = False
    """It waits for its model to start, not for room."""
    _last_words = ""
    _next_words_at = 0.0

    def join_queue(self) -> None:
        """Wait in the line of its model, or say that this is full."""
        raise NotImplementedError

    def give_up(self, failure: Failure) -> None:
        """Stop waiting, and say why."""
        raise NotImplementedError

    def hold(self, model: str | None) -> bool:
        """Wait until the deployment of `model` has a replica, or say why that makes no sense; False when it is of none."""
        engine = self._engine
        state = engine.cold.states.get(model) if model is not None else None
        if state is None or model is None or self.dispatch.tried or self.owner_tag:
            return False
        if not engine.cold.can_start(model):
            engine.cold.refused(model)
            self.fail(dispatch.model_unavailable(state, engine.cold.told(model), engine.cold.retry_after_s(model)))
            return True
        now = engine.now()
        if not self.holds:
            self.holds = True
            self._next_words_at = now + FIRST_COMMENT_S
        is_first = model not in engine.cold.held
        engine.cold.held.add(model)
        self.join_queue()
        if is_first:
            engine.tell_demand()
        return True

    def begin_again(self, now: float) -> None:
        """Its model is there by now, without room for it: that is another wait, with its own limit."""
        self._count_wait(now)
        self._queued_at = now

    def leave_queue(self, now: float) -> None:
        """Its turn has come."""
        self.dequeued_at = now
        self._count_wait(now)
        self._queued_at = 0.0

    def _count_wait(self, now: float) -> None:
        engine, seconds = self._engine, now - self._queued_at
        self.queued_s += seconds
        self.tells_more = True
        if self.holds:
            self.holds = False
            engine.cold.waited(self.facts.model or "", seconds)
            if engine.limits.sse_keepalive_s and self.wants_events:
                self._comment_at = now + engine.limits.sse_keepalive_s
        else:
            engine.counters.tally(engine.control.slot).observe(QUEUE_WAIT, seconds)

    def check_hold(self, now: float) -> None:
        """Called by the sweep while it is held: tell how its model stands, or that it has taken too long."""
        engine, limits, model = self._engine, self._engine.limits, self.facts.model or ""
        if model not in engine.cold.held:
            self.begin_again(now)
            return
        longest_s = limits.first_byte_timeout_s if self.wants_events else limits.hold_s
        if now > min(self._queued_at + longest_s, self.started + limits.total_timeout_s):
            engine.cold.refused(model)
            answer = dispatch.model_starting(
                model, engine.cold.words(model), engine.cold.told(model), engine.cold.retry_after_s(model)
            )
            self.give_up(Failure(AttemptVerdict.NEUTRAL, AttemptOutcome.TIMED_OUT, answer))
        elif limits.sse_keepalive_s and self.wants_events and now >= self._next_words_at:
            words = engine.cold.words(model)
            if words != self._last_words or now >= self._comment_at:
                self._last_words = words
                self._next_words_at = now + COMMENT_EACH_S
                self.say(words, now)
