"""The half of a request that has a deadline of its client's: `X-Request-Timeout`, `X-First-Byte-Timeout`, in seconds.

They count from when the request is whole, and only shorten what the settings allow. That one has passed says nothing of the
replica. A request that says nothing of time does not come by here.
"""

from math import inf

from router import dispatch
from router.admission import Priority
from router.counters import AttemptOutcome
from router.dispatch import Failure, LocalAnswer
from router.outlier import AttemptVerdict
from router.proxy import checks
from router.proxy.held import HeldRequest
from router.proxy.sides import ClientDeadline


class TimedRequest(HeldRequest):
    """What `Exchange` is made on. Its deadline stands in `Engine.deadlines`, so that requests without one have no place for it."""

    def take_deadlines(self) -> None:
        """Note how long the client has.

        Raises:
            Rejected: It says so in a way that nobody understands.
        """
        told = checks.deadlines_of(self.head)
        whole_within_s = told.get(dispatch.REQUEST_TIMEOUT.encode(), inf)
        begun_within_s = told.get(dispatch.FIRST_BYTE_TIMEOUT.encode(), inf)
        if begun_within_s < whole_within_s:
            self._set_due(dispatch.FIRST_BYTE_TIMEOUT, begun_within_s, whole_within_s)
        else:
            self._set_due(dispatch.REQUEST_TIMEOUT, whole_within_s, whole_within_s)

    def _set_due(self, field: str, seconds: float, whole_within_s: float) -> ClientDeadline:
        due = self._engine.deadlines[self] = ClientDeadline(self.started + seconds, field, seconds, whole_within_s)
        return due

    def comes_too_late(self, now: float, priority: Priority) -> LocalAnswer | None:
        """What to say to a request that is about to wait for longer than its client has; None where it may wait."""
        engine, model = self._engine, self.facts.model or ""
        due = engine.deadlines.get(self)
        if due is None:
            return None
        eta_s = engine.cold.eta_s(model) if self.holds else engine.waiting.wait_s(model, priority)
        if eta_s is None or now + eta_s <= due.at:
            return None
        answer = dispatch.deadline_too_near(due.field, due.seconds, eta_s)
        if self.holds:
            answer.more = engine.cold.told(model)
            engine.cold.turned_away(model)
        return answer

    def check_deadline(self, now: float, *, has_begun: bool) -> bool:
        """True when its client's time has passed; the request is over with it."""
        due = self._engine.deadlines.get(self)
        if due is not None and now > due.at and has_begun and due.field == dispatch.FIRST_BYTE_TIMEOUT:
            due = self._set_due(dispatch.REQUEST_TIMEOUT, due.whole_within_s, due.whole_within_s)
        if due is None or now <= due.at:
            return False
        answer = dispatch.deadline_passed(due.field, due.seconds)
        self.give_up(Failure(AttemptVerdict.NEUTRAL, AttemptOutcome.TIMED_OUT, answer))
        return True
