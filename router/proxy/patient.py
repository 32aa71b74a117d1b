"""The half of a request that may wait in the line of its replica, which has enough to read for now (`policy/line.py`)."""

from router import dispatch
from router.admission import Priority
from router.proxy import checks
from router.proxy.attempt import AttemptPhase, UpstreamAttempt
from router.proxy.translated import TranslatedRequest


class PatientRequest(TranslatedRequest):
    """What `Exchange` is made on."""

    # It keeps its default in most requests, until it is asked: class attributes cost nothing per request.
    _attempt: UpstreamAttempt | None = None

    @property
    def urgency(self) -> Priority:
        """By its key and its own word."""
        return checks.priority_of(self.head, self._priority)

    @property
    def may_wait(self) -> bool:
        """Whether its replica need not get it at once."""
        return len(self.dispatch.tried) == 1 and not self.takes_data and self.kind is not None

    def waited(self, since: float, now: float) -> None:
        """It was in its replica's line, and goes there now."""
        self._queued_at = since
        self.leave_queue(now)

    def has_others(self) -> bool:
        """Somebody could be asked who was not asked yet."""
        raise NotImplementedError

    def changes_line(self) -> bool:
        """True when it waits for a replica that gets nothing any more: another one is asked."""
        attempt = self._attempt
        if attempt is None or attempt.phase is not AttemptPhase.IN_LINE or not self._engine.has_left(attempt.endpoint):
            return False
        if not self.has_others():
            attempt.wait_no_longer()  # it goes where it is, as if there were no line
            return False
        self.dispatch.take_back(attempt.endpoint)
        attempt.drop(dispatch.MOVED)
        self._choose_instead()
        return True

    def _choose_instead(self) -> None:
        """Its attempt was dropped before anybody was asked."""
        self.choose()
