"""A form (audio, images) that goes on to its replica while it arrives.

Its beginning is held, has named its model, and is checked like any body. The rest is read by the same parser as it passes.
Its last piece waits until all of it was found right: no server acts upon a form that has no end, so nothing is done that a
held form would not have been let to do; a form that turns out wrong ends with the connection to the replica. Each side is
read only as fast as the other one takes it. Until something of the rest has passed, the request may go to another replica.
"""

from math import inf

from router import dispatch
from router.counters import AttemptOutcome
from router.dispatch import Failure, Judgement, LocalAnswer
from router.facts import BadBody
from router.form import FormReader
from router.model import Endpoint
from router.outlier import AttemptVerdict
from router.policy.placed import PlacedRequest
from router.proxy.attempt import UpstreamAttempt
from router.proxy.engine import Engine
from router.proxy.exchange import Exchange, RequestPhase
from router.proxy.head import RequestHead
from router.proxy.sides import ClientConnection
from router.proxy.upstream import Upstream
from router.proxy.watch import StallWatch


def beginning_of(head: RequestHead, body: bytes) -> FormReader | None:
    """The reader of a form that begins with `body`, if its model is known by then; None where all of it has to be held."""
    try:
        form = FormReader(head.content_type or b"")
        form.feed(body)
    except BadBody:
        return None  # told when it is whole, as of every other body
    return form if form.model is not None else None


class UploadExchange(Exchange):
    """One such request; for the first arguments see `Exchange`.

    Args:
        engine: The worker's shared state.
        client: The connection it came by.
        head: The request's head.
        body: What came of the form so far.
        form: Has read that.
        rest_bytes: How many are to come.
        until: When they must have, on the worker's clock.
    """

    _sends_to: "UploadAttempt | None" = None
    """The replica that has the beginning."""
    _has_passed = False
    _ready = b""
    """What may pass."""
    _last = b""
    """The latest piece: it may when the next one has come, or all was found right."""
    _idle_at = inf
    """When the client has been silent for too long; `inf` while it is held."""
    _stalled_at = inf
    """When the replica has taken nothing for too long."""

    def __init__(
        self,
        engine: Engine,
        client: ClientConnection,
        head: RequestHead,
        body: bytes,
        *,
        form: FormReader,
        rest_bytes: int,
        until: float,
    ) -> None:
        head = head.copied()
        self._keeps_alive = head.keep_alive
        head.keep_alive = False  # an answer that comes before the form's end is the connection's last
        head.is_streamed = True
        super().__init__(engine, client, head, body)
        self.takes_data = True
        self.rest_bytes = self._awaited = rest_bytes
        self._form = form
        self._until = until
        client.hold(paused=True)

    def _new_attempt(self, endpoint: Endpoint, placement: PlacedRequest | None) -> UpstreamAttempt:
        return UploadAttempt(self._engine, self, endpoint, placement)

    def has_others(self) -> bool:
        """Nobody, once a part of the rest went to one of them."""
        return not self._has_passed and super().has_others()

    def ask_another(self, judgement: Judgement) -> None:
        """The attempt is over: what still comes is the next one's, and is waited for with it."""
        self._sends_to = None
        self._idle_at = self._stalled_at = inf
        if self.takes_data:
            self._client.hold(paused=True)
        super().ask_another(judgement)

    # -- its rest ----------------------------------------------------------------------------------------------------

    def sent(self, attempt: "UploadAttempt", *, paused: bool) -> None:
        """The beginning is written to a replica: the rest may follow, unless this is `paused` by now."""
        self._sends_to = attempt
        self.replica_paused(paused=paused)
        self._flow(attempt)

    def replica_paused(self, *, paused: bool) -> None:
        """The replica cannot take more, or can again."""
        now, limits = self._engine.now(), self._engine.limits
        self._stalled_at = now + limits.write_stall_s if paused else inf
        self._idle_at = inf if paused else now + limits.body_idle_timeout_s
        if self.takes_data:
            self._client.hold(paused=paused)

    def client_data(self, data: bytes) -> None:
        """A piece of the rest."""
        self._awaited -= len(data)
        further = b""
        if self._awaited < 0:
            data, further = data[: self._awaited], data[self._awaited :]
            self._awaited = 0
        self._idle_at = self._engine.now() + self._engine.limits.body_idle_timeout_s
        try:
            self._form.feed(data)
            if not self._awaited:
                self._form.end()
        except BadBody as error:
            self._give_up_client(LocalAnswer(400, "invalid_body", str(error)))
            return
        self._ready += self._last
        self._last = data
        if not self._awaited:
            self._ready += data
            self.takes_data = False
            self.head.keep_alive = self._keeps_alive
            self._idle_at = self._until = inf
            self._client.put_back(further)
        if self._sends_to is not None:
            self._flow(self._sends_to)

    def _flow(self, attempt: "UploadAttempt") -> None:
        data, self._ready = self._ready, b""
        self._has_passed = self._has_passed or bool(data)
        attempt.pass_on(data, whole=not self._awaited)

    def _give_up_client(self, answer: LocalAnswer) -> None:
        self.give_up(Failure(AttemptVerdict.NEUTRAL, AttemptOutcome.CLIENT_ERROR, answer))

    # -- its end -----------------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Called by the sweep: end what has taken too long."""
        if self.phase is RequestPhase.ASKING and self.takes_data:
            if now > self._stalled_at:
                self.give_up(dispatch.FELL_SILENT)
            elif now > min(self._idle_at, self._until):
                self._give_up_client(
                    LocalAnswer(408, "body_timeout", "the rest of the request's body did not come in time")
                )
        super().check(now)

    def finish(self, *, keep_alive: bool = False, notify: bool = True) -> None:
        """The request is over, one way or another."""
        super().finish(keep_alive=keep_alive and not self.takes_data, notify=notify)
        self._sends_to = None  # ends the reference cycle here


class UploadAttempt(UpstreamAttempt):
    """One try at one replica; for the arguments see `UpstreamAttempt`."""

    def __init__(
        self, engine: Engine, upload: UploadExchange, endpoint: Endpoint, placement: PlacedRequest | None
    ) -> None:
        super().__init__(engine, upload, endpoint, placement)
        self._upload = upload
        self._is_paused = False

    def begin(self) -> None:
        """Ask over a new connection: over an idle one that closes meanwhile, nobody could ask again once the rest has passed."""
        self._engine.begin_attempt(self.endpoint)
        self._begin_connect()

    def pass_on(self, data: bytes, *, whole: bool) -> None:
        """The next piece of the form; `whole`: the last."""
        if self._upstream is None:
            return
        self._upstream.owes = not whole
        self._upstream.write(data)
        if whole:
            self._sent_at = self._engine.now()

    def on_write_paused(self, *, paused: bool) -> None:
        """The replica cannot take more, or can again."""
        self._is_paused = paused
        self._upload.replica_paused(paused=paused)

    @property
    def deadlines_from(self) -> tuple[float, float]:
        """As of every attempt; a replica need not answer to a form that is still on its way."""
        sent_at, last_byte_at = super().deadlines_from
        return inf if self._upload.takes_data else sent_at, last_byte_at

    def tell(self, watch: StallWatch) -> None:
        """As every attempt; nobody waits for the replica while its form is on the way."""
        if not self._upload.takes_data:
            super().tell(watch)

    def _send(self, connection: Upstream) -> None:
        connection.owes = True
        super()._send(connection)
        self._upload.sent(self, paused=self._is_paused)
