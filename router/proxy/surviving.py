"""A request whose stream outlives its replica: what was said is kept, and another replica goes on from there (docs/streams.md).

Made only where some model has `rescue` or `hedge`, so that nobody else's requests pay for it.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from router import dispatch
from router.counters import HAND_OVERS, RESCUES, RESCUES_FAILED
from router.dispatch import Failure
from router.model import Endpoint
from router.policy.models import NO_RULE
from router.policy.placed import PlacedRequest
from router.proxy.attempt import AttemptPhase, UpstreamAttempt
from router.proxy.engine import SWEEP_S, Engine
from router.proxy.exchange import RequestPhase
from router.proxy.followed import FollowedWriter, is_stream
from router.proxy.head import RequestHead, ResponseHead
from router.proxy.hedged import HedgedRequest
from router.proxy.racing import RacingAttempt
from router.proxy.response_writer import ResponseWriter
from router.proxy.sides import ClientConnection
from router.streams.continuation import CHAT, COMPLETIONS, can_be_continued, continued, is_closing
from router.streams.kept import Kept

_BROKEN_OFF = (dispatch.TRUNCATED, dispatch.INCOMPLETE, dispatch.FELL_SILENT)
"""What a stream is rescued from."""
_AFTER_S: Final = 0.002
"""Timers count in milliseconds, and a deadline passes after its moment."""


class SurvivingExchange(HedgedRequest):
    """One request of one client; for the arguments see `Exchange`."""

    def __init__(self, engine: Engine, client: ClientConnection, head: RequestHead, body: bytes) -> None:
        super().__init__(engine, client, head, body)
        self._is_first = True
        self._kept: Kept | None = None
        """Set while its stream may be continued."""
        self._lost: Failure | None = None
        """Set while it is to be continued: what the client is told if nobody can."""
        self._lost_at = 0.0
        self._origin: Endpoint | None = None
        """Whose stream is to be continued."""
        self._continuation = b""
        self._rescues = 0
        self._hand_overs = 0
        self._moves = False
        """It is to be continued because its replica leaves, not because that was lost."""
        self._asked_before = 0
        self._begun_at = 0.0
        self._bytes_before = 0

    # -- its beginning -----------------------------------------------------------------------------------------------

    def _new_attempt(self, endpoint: Endpoint, placement: PlacedRequest | None) -> UpstreamAttempt:
        if self._is_first:
            self._is_first = False
            model = self.facts.model
            rule = self._engine.chooser.rules.find(model) if model is not None else NO_RULE
            if self.translation is None:
                self.begin_wait(rule, endpoint)
            if rule.rescue and self.facts.stream and self.facts.choices == 1 and self.translation is None:
                operation = self.head.operation
                name = operation.name if operation is not None else b""
                if name in (CHAT, COMPLETIONS) and can_be_continued(self.body, chat=name == CHAT):
                    self._kept = Kept(chat=name == CHAT)
        if self._kept is None and self._waits_as is None:
            return UpstreamAttempt(self._engine, self, endpoint, placement)
        return RacingAttempt(self._engine, self, endpoint, placement, holds_head=self._waits_as is not None)

    def _new_writer(self) -> ResponseWriter:
        if self._kept is None:
            return super()._new_writer()
        return FollowedWriter(
            self._client.sink(),
            self._kept,
            hides=self.hides_usage,
            http10=self.head.http10,
            keep_alive=self.head.keep_alive and not self._engine.draining,
            held_limit_bytes=self._engine.limits.held_limit_bytes,
        )

    @property
    def takes_chunks(self) -> bool:
        """Nobody may read a stream that passes with its framing."""
        return (
            self._kept is None
            and not self.hides_usage
            and self.facts.choices == 1
            and not self.head.http10
            and self.translation is None
        )

    @property
    def asked_at(self) -> float:
        """Since when the client waits."""
        return self._lost_at or self.started

    # -- the replica is lost -----------------------------------------------------------------------------------------

    def attempt_failed(self, failure: Failure) -> None:
        """Go on elsewhere, where that can be done; else as any request."""
        if self._lost is not None:
            self.choose()
        elif failure in _BROKEN_OFF and self._may_go_on(failure):
            self._go_on(failure)
        else:
            super().attempt_failed(failure)

    def give_up(self, failure: Failure) -> None:
        """A stream that fell silent is no reason to give up, where another replica can go on with it."""
        if failure is dispatch.FELL_SILENT and self._lost is None and self._may_go_on(failure):
            if self._attempt is not None:
                self._attempt.drop(failure)
            self._go_on(failure)
        else:
            super().give_up(failure)

    def _may_go_on(self, failure: Failure) -> bool:
        """Whether its stream, which broke off, is to be continued; counted where it should be and cannot."""
        engine, attempt, kept = self._engine, self._attempt, self._kept
        if kept is None or attempt is None or not self.begun:
            return False
        if kept.done:
            return True
        # A replica that lives and cuts its streams is a reason for storms; one that is gone is not (`dispatch.Judgement`).
        charged = failure is dispatch.INCOMPLETE
        may = self._rescues < engine.limits.max_rescues and (not charged or engine.retries.allows(engine.now()))
        if may and self._prepare(kept, attempt) and self._successors():
            return True
        engine.counters.add(attempt.endpoint.slot, RESCUES_FAILED)
        return False

    def _prepare(self, kept: Kept, attempt: UpstreamAttempt) -> bool:
        """Make what another replica is to be asked; False where that cannot be asked."""
        writer = self._writer
        if not isinstance(writer, FollowedWriter) or writer.kept is None or not kept.can_go_on:
            return False
        continuation = continued(self.body, kept)
        if continuation is None:
            return False
        self._engine.body_bytes += len(continuation) - len(self._continuation)
        self._continuation = continuation
        self._origin = attempt.endpoint
        self._begun_at = self._begun_at or attempt.first_byte_at
        return True

    def _go_on(self, lost: Failure) -> None:
        """Have another replica say what follows; nothing does after the end mark."""
        kept, writer = self._kept, self._writer
        if kept is not None and kept.done and writer is not None:
            writer.end()
            self.finish(keep_alive=writer.keep_alive)
            return
        self._rescues += 1
        self._moves = False
        self._ask_next(lost)

    def _ask_next(self, lost: Failure) -> None:
        self._lost = lost
        self._lost_at = self._engine.now()
        self._asked_before = self.dispatch.attempts
        self.choose()

    # -- the replica leaves ------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Called by the sweep."""
        if self._engine.leaving and self._kept is not None and self.phase is RequestPhase.ASKING:
            self._hand_over(self._kept)
        super().check(now)
        attempt = self._attempt
        if self._kept is not None and attempt is not None and attempt.first_byte_at:
            left_s = attempt.deadlines_from[1] + self._engine.limits.idle_timeout_s - now
            if 0 < left_s < SWEEP_S:  # its client waits: not for the next sweep as well
                asyncio.get_running_loop().call_later(left_s + _AFTER_S, self._check_again)

    def _check_again(self) -> None:
        self.check(self._engine.now())

    def _hand_over(self, kept: Kept) -> None:
        """Leave a replica whose operator wants it empty, where another has room: the old attempt holds still meanwhile."""
        attempt, writer, engine = self._attempt, self._writer, self._engine
        if attempt is None or attempt.phase is AttemptPhase.OVER or attempt.endpoint.id not in engine.leaving:
            return
        if self._lost is not None or self._second is not None:
            return
        if not self.begun:
            if self.has_others():
                attempt.drop(dispatch.MOVED)
                self._writer = writer if writer is not None and writer.begun else None
                self.choose()
        elif self._prepare(kept, attempt) and engine.with_room(self._successors()):
            attempt.set_paused(paused=True)
            self._second, self._moves = attempt, True
            self._ask_next(dispatch.TRUNCATED)

    def fall_out(self, attempt: UpstreamAttempt) -> None:
        """One of two attempts is over; a stream that could not be handed over goes on as it did."""
        super().fall_out(attempt)
        if self._lost is not None and self._attempt is not None and self._attempt.phase is AttemptPhase.RELAYING:
            self._lost, self._moves = None, False
            self._attempt.set_paused(paused=self._client.paused)

    def _successors(self) -> Sequence[Endpoint]:
        """Who could say what follows: asked for nothing yet, able to, and with the same model."""
        engine, origin, model, operation = self._engine, self._origin, self.facts.model or "", self.head.operation
        if origin is None or operation is None:
            return ()
        call, lineage = operation.name.decode(), origin.lineages.get(model)
        candidates = engine.candidates(engine.peers(model), model, (*self.dispatch.tried, origin.id))
        return [one for one in candidates if call in one.continues and one.lineages.get(model) == lineage]

    def choose(self) -> None:
        """Ask a replica; for a stream that broke off one that can go on, or wait until such a one has room."""
        engine, lost = self._engine, self._lost
        if lost is None:
            super().choose()
            return
        candidates = self._successors()
        if not candidates or self.dispatch.attempts > self._asked_before + engine.limits.max_retries:
            self._not_continued(lost)
            return
        roomy = engine.with_room(candidates)
        if not roomy and self._moves:
            self._not_continued(lost)
            return
        if not roomy:
            self.join_queue()
            return
        now = engine.now()
        if self._queued_at:
            self.leave_queue(now)
        engine.retries.note_retry()
        decision = engine.chooser.pick(roomy, self.facts, now)
        self._ask(decision.endpoint, engine.chooser.placed(decision, self.facts, now))

    def _not_continued(self, lost: Failure) -> None:
        if self._second is not None and self._attempt is not None:
            self.fall_out(self._attempt)
            return
        if self._origin is not None:
            self._engine.counters.add(self._origin.slot, RESCUES_FAILED)
        self.fail(lost.answer)

    def _outgoing(self) -> tuple[RequestHead, bytes]:
        return (self.head, self._continuation) if self._lost is not None else super()._outgoing()

    def accept(self, head: ResponseHead) -> ResponseWriter | None:
        """Where the response goes: of one that continues a stream, on from its seam."""
        if self._lost is None:
            return super().accept(head)
        engine, attempt, kept, writer = self._engine, self._attempt, self._kept, self._writer
        assert isinstance(writer, FollowedWriter)  # noqa: S101 - by `_prepare`
        if attempt is None or kept is None or self._origin is None or not is_stream(head):
            return None
        self._bytes_before += writer.sent_bytes
        writer.go_on(head, attempt.endpoint, closing=is_closing(self.body, kept))
        engine.counters.add(self._origin.slot, HAND_OVERS if self._moves else RESCUES)
        self._hand_overs += self._moves
        self._lost, self._moves = None, False
        self.win(attempt)
        return writer

    # -- the end -----------------------------------------------------------------------------------------------------

    def more_told(self) -> dict[str, object]:
        """Of the access log."""
        if not (self._rescues or self._hand_overs) or self._origin is None:
            return super().more_told()
        return super().more_told() | {
            "rescues": self._rescues,
            "hand_overs": self._hand_overs,
            "continued_from": self._origin.name,
            "first_byte_ms": round((self._begun_at - self.started) * 1e3, 3),
            "response_bytes": self._bytes_before + (self._writer.sent_bytes if self._writer is not None else 0),
        }

    def finish(self, *, keep_alive: bool = False, notify: bool = True) -> None:
        """The request is over, one way or another."""
        if self.phase is not RequestPhase.DONE:
            self._engine.body_bytes -= len(self._continuation)
            self._continuation = b""
        super().finish(keep_alive=keep_alive, notify=notify)
