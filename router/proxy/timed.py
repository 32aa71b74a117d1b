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


class TimedRequest(HeldRequest):
    """What `Exchange` is made on."""

    # These keep their defaults in most requests: class attributes cost nothing per request.
    due_at = inf
    """When the next of its client's deadlines passes."""
    _due: tuple[str, float] = ("", inf)
    """Whose that is, and its seconds."""
    _whole_within_s = inf

    def take_deadlines(self) -> None:
        """Note how long the client has.

        Raises:
            Rejected: It says so in a way that nobody understands.
        """
        told = checks.deadlines_of(self.head)
        self._whole_within_s = told.get(dispatch.REQUEST_TIMEOUT.encode(), inf)
        begun_within_s = told.get(dispatch.FIRST_BYTE_TIMEOUT.encode(), inf)
        if begun_within_s < self._whole_within_s:
            self._set_due(dispatch.FIRST_BYTE_TIMEOUT, begun_within_s)
        else:
            self._set_due(dispatch.REQUEST_TIMEOUT, self._whole_within_s)

    def _set_due(self, field: str, seconds: float) -> None:
        self._due = (field, seconds)
        self.due_at = self.started + seconds

    def comes_too_late(self, now: float, priority: Priority) -> LocalAnswer | None:
        """What to say to a request that is about to wait for longer than its client has; None where it may wait."""
        engine, model = self._engine, self.facts.model or ""
        eta_s = engine.cold.eta_s(model) if self.holds else engine.waiting.wait_s(model, priority)
        if eta_s is None or now + eta_s <= self.due_at:
            return None
        answer = dispatch.deadline_too_near(*self._due, eta_s)
        if self.holds:
            answer.more = engine.cold.told(model)
            engine.cold.turned_away(model)
        return answer

    def check_deadline(self, now: float, *, has_begun: bool) -> bool:
        """Called when `due_at` has passed; True when the request is over with it."""
        field, seconds = self._due
        if has_begun and field == dispatch.FIRST_BYTE_TIMEOUT:
            self._set_due(dispatch.REQUEST_TIMEOUT, self._whole_within_s)
            return now > self.due_at and self.check_deadline(now, has_begun=True)
        answer = dispatch.deadline_passed(field, seconds)
        self.give_up(Failure(AttemptVerdict.NEUTRAL, AttemptOutcome.TIMED_OUT, answer))
        return True
