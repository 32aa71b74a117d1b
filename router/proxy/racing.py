"""Two attempts of one request beside each other: whose first byte comes first is the answer, and the other ends at once.

The second one is a copy for a request that waits unusually long (`hedging.py`), or goes on with a stream while the first, of a
replica that leaves, holds still until that has begun.
"""

from typing import Final

from router import dispatch
from router.dispatch import Failure, Judgement, judge
from router.model import Endpoint
from router.policy.placed import PlacedRequest
from router.proxy.attempt import UpstreamAttempt
from router.proxy.engine import Engine
from router.proxy.exchange import Exchange
from router.proxy.head import ResponseHead

_CLIENT_ERROR: Final = 400


class RacedRequest(Exchange):
    """One request of one client; for the arguments see `Exchange`."""

    _second: UpstreamAttempt | None = None
    """Beside `_attempt`."""

    def other(self, attempt: UpstreamAttempt) -> UpstreamAttempt | None:
        """The attempt that runs beside this one."""
        return self._second if attempt is self._attempt else self._attempt if attempt is self._second else None

    def fall_out(self, attempt: UpstreamAttempt) -> None:
        """It is over; the other one goes on."""
        if attempt is self._attempt:
            self._attempt = self._second
        self._second = None

    def win(self, attempt: UpstreamAttempt) -> None:
        """It is the answer."""
        other = self.other(attempt)
        self._attempt, self._second = attempt, None
        if other is not None:
            other.drop(dispatch.MOVED)

    def _choose_instead(self) -> None:
        if self._second is None:
            super()._choose_instead()
        elif self._attempt is not None:
            self.fall_out(self._attempt)

    def _drop(self, judgement: Judgement) -> None:
        if self._second is not None:
            self._second.drop(judgement)
            self._second = None
        super()._drop(judgement)


class RacingAttempt(UpstreamAttempt):
    """One try beside which another may run.

    Args:
        engine: The worker's shared state.
        race: The request.
        endpoint: Whom to ask.
        placement: What the policy is to be told of it, if anything.
        holds_head: A head is no answer yet: engines send it before they have read the prompt.
    """

    def __init__(
        self,
        engine: Engine,
        race: RacedRequest,
        endpoint: Endpoint,
        placement: PlacedRequest | None,
        *,
        holds_head: bool,
    ) -> None:
        super().__init__(engine, race, endpoint, placement)
        self._race = race
        self._holds_head = holds_head
        self._head: ResponseHead | None = None

    def on_head(self, head: ResponseHead) -> None:
        """The response begins."""
        if head.status >= _CLIENT_ERROR and self._race.other(self) is not None:
            self.drop(judge(head.status))
            self._race.fall_out(self)
        elif self._holds_head and head.status < _CLIENT_ERROR:
            self._head = head
        else:
            super().on_head(head)

    def on_body(self, data: bytes, *, framed: bool) -> None:
        """Bytes of the answer."""
        if self._is_taken():
            super().on_body(data, framed=framed)

    def on_end(self) -> None:
        """The answer is complete, as far as its framing goes."""
        if self._is_taken():
            super().on_end()

    def on_whole(self, head: ResponseHead, body: bytes) -> None:
        """The whole answer at once."""
        if (head.status >= _CLIENT_ERROR or not self._holds_head) and self._race.other(self) is not None:
            self._upstream = None
            self._settle(judge(head.status))
            self._race.fall_out(self)
        else:
            self._race.win(self)
            super().on_whole(head, body)

    def _is_taken(self) -> bool:
        """Have the request take the head that was held; False where it asks another replica instead."""
        head, self._head = self._head, None
        if head is not None:
            self._race.win(self)
            super().on_head(head)
        return self._writer is not None

    def _fail(self, failure: Failure) -> None:
        if self._race.other(self) is not None:
            self._settle(failure)
            self._race.fall_out(self)
        else:
            super()._fail(failure)
