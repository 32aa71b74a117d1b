"""PURE. What happens to a request: every event of its life is answered by what is to be done next.

    it starts, or room was made   ASK a replica, WAIT for room, or answer
    a replica answered            RELAY the response, or ASK another
    an attempt failed             ASK another, or answer
    a deadline passed             answer

`proxy/exchange.py` carries it out. Another replica is asked only while the client has got no byte of a response, never the
same one twice, within `max_retries` and the retry budget. What a failure says of the replica, what it is counted as, and
what the client is told of it stands in this file and nowhere else.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from math import ceil, inf
from typing import Final

from common.wire.deployment import DeploymentPhase, ModelState
from router.admission import RETRY_AFTER_LIMIT_S
from router.counters import AttemptOutcome
from router.model import Endpoint
from router.outlier import AttemptVerdict
from router.proxy.limits import Limits
from router.proxy.paths import Operation

RETRIED: Final = frozenset({429, 500, 502, 503, 504})
"""Statuses that another replica may better; else they are passed on (docs/faults.md A20)."""
_BUSY: Final = frozenset({429, 503})
_CLIENT_ERROR, _SERVER_ERROR = 400, 500
_RETRY_LATER = (b"retry-after", b"5")
_DO_NOT_RETRY = (b"x-should-retry", b"false")
REQUEST_TIMEOUT, FIRST_BYTE_TIMEOUT = "X-Request-Timeout", "X-First-Byte-Timeout"


class Action(Enum):
    """What the shell is to do."""

    ASK = "ask"
    """One of the candidates with room."""
    WAIT = "wait"
    """In the queue, until a replica has room."""
    RELAY = "relay"
    """The replica's response, to the client."""


class LocalAnswer:
    """An error that the router answers itself; `headers` are further fields, `more` further members of the error."""

    def __init__(self, status: int, code: str, message: str, *headers: tuple[bytes, bytes]) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers
        self.more: Mapping[str, object] = {}


class Judgement:
    """What the end of an attempt says of the replica, and what it is counted as.

    `charged`: another attempt is charged to the retry budget. The budget is against storms on replicas that struggle. A
    replica that is gone does no work for its requests any more, so moving them, all at once, adds no load to what was
    admitted; charged, a death would lose those of its requests that exceed the budget (docs/faults.md A1, A2 against D8).
    """

    def __init__(self, verdict: AttemptVerdict, outcome: AttemptOutcome, *, charged: bool = False) -> None:
        self.verdict = verdict
        self.outcome = outcome
        self.charged = charged


class Failure(Judgement):
    """The end of an attempt without a response; `answer` is for the client, where no other replica is asked."""

    def __init__(
        self, verdict: AttemptVerdict, outcome: AttemptOutcome, answer: LocalAnswer, *, charged: bool = False
    ) -> None:
        super().__init__(verdict, outcome, charged=charged)
        self.answer = answer


_OK: Final = Judgement(AttemptVerdict.GOOD, AttemptOutcome.OK)
_CLIENTS_OWN: Final = Judgement(AttemptVerdict.NEUTRAL, AttemptOutcome.CLIENT_ERROR)
_IS_BUSY: Final = Judgement(AttemptVerdict.NEUTRAL, AttemptOutcome.BUSY, charged=True)
_FAILED_INSIDE: Final = Judgement(AttemptVerdict.SERVER_ERROR, AttemptOutcome.SERVER_ERROR, charged=True)
CLIENT_GONE: Final = Judgement(AttemptVerdict.NEUTRAL, AttemptOutcome.CLIENT_GONE)
"""Nobody is to blame."""

_NO_CONNECTION: Final = LocalAnswer(503, "connect_failed", "no replica could be reached")
_DIED: Final = LocalAnswer(502, "upstream_died", "the replica closed the connection before its answer was complete")
UNREACHABLE: Final = Failure(AttemptVerdict.REFUSED, AttemptOutcome.CONNECT_FAILED, _NO_CONNECTION)
"""Nobody is there, or there is no way there."""
UNCONNECTED: Final = Failure(AttemptVerdict.FAULT, AttemptOutcome.CONNECT_FAILED, _NO_CONNECTION)
"""No connection for another reason: a want of descriptors, say, is our own fault (docs/faults.md D19 to D21)."""
CLOSED: Final = Failure(AttemptVerdict.BROKEN, AttemptOutcome.DIED, _DIED)
"""A fresh connection was closed before a byte came."""
SPOKE_TLS: Final = Failure(AttemptVerdict.BROKEN, AttemptOutcome.DIED, _DIED)
"""A TLS alert came: the port speaks TLS, and was asked without."""
TRUNCATED: Final = Failure(AttemptVerdict.BROKEN, AttemptOutcome.DIED, _DIED)
"""The connection was closed in the middle of a response."""
INCOMPLETE: Final = Failure(
    AttemptVerdict.BROKEN,
    AttemptOutcome.TRUNCATED,
    LocalAnswer(502, "upstream_truncated", "the replica ended its answer before it was complete"),
)
"""The response ended as its framing says, and is not whole all the same."""
MALFORMED: Final = Failure(
    AttemptVerdict.BROKEN,
    AttemptOutcome.MALFORMED,
    LocalAnswer(502, "upstream_malformed", "the replica's answer is no valid HTTP"),
    charged=True,
)
MOVED: Final = Judgement(AttemptVerdict.NEUTRAL, AttemptOutcome.MOVED)
"""Another replica does the rest."""
STOPPING: Final = Failure(
    AttemptVerdict.NEUTRAL, AttemptOutcome.CLIENT_GONE, LocalAnswer(503, "router_stopping", "the router is stopping")
)
NO_COUNT: Final = LocalAnswer(
    404, "no_token_count", "the servers of this model do not count tokens (/v1/messages/count_tokens)", _DO_NOT_RETRY
)
_NO_FIRST_BYTE: Final = Failure(
    AttemptVerdict.FAULT,
    AttemptOutcome.TIMED_OUT,
    LocalAnswer(504, "first_byte_timeout", "the replica sent no answer in time"),
)
FELL_SILENT: Final = Failure(
    AttemptVerdict.FAULT, AttemptOutcome.TIMED_OUT, LocalAnswer(504, "idle_timeout", "the replica stopped sending")
)


OWNER_UNKNOWN: Final = LocalAnswer(
    503, "response_owner_unknown", "the replicas did not say in time which of them has the response", _RETRY_LATER
)


def response_gone(response: str, reason: str) -> LocalAnswer:
    """The answer to a request about a stored response that cannot be had."""
    return LocalAnswer(
        404,
        "response_not_found",
        f"response '{response}': {reason}. A response lives as long as the replica that made it, and only if that stores "
        "responses (vLLM: VLLM_ENABLE_RESPONSES_API_STORE=1). To go on, send the whole conversation in 'input', without "
        "'previous_response_id'",
    )


ADAPTER_NOT_LOADED: Final = LocalAnswer(
    503, "adapter_not_loaded", "no replica could load this adapter; its operators are told why", _RETRY_LATER
)
"""The answer to a request that waited for an adapter, and has nobody to go to."""


def model_starting(model: str, words: str, told: Mapping[str, object], retry_after_s: int) -> LocalAnswer:
    """The answer to a request whose deployment took too long to start; `words` and `told`: how it stands."""
    reason = told.get("reason")
    message = f"model '{model}' is not ready yet: {words}" + (f" ({reason})" if reason else "")
    answer = _queue_answer(503, "model_starting", message, retry_after_s)
    answer.more = told
    return answer


def model_unavailable(state: ModelState, told: Mapping[str, object], retry_after_s: int) -> LocalAnswer:
    """The answer to a request whose deployment cannot be started now."""
    reason = state.reason if isinstance(state.reason, str) else f"it is {state.phase.value}"
    message = f"deployment '{state.deployment}' cannot serve model '{state.model}' now: {reason}"
    if state.phase is DeploymentPhase.UNSCHEDULABLE:  # time alone does not mend it
        answer = LocalAnswer(503, "model_unavailable", message, _DO_NOT_RETRY)
    else:
        answer = _queue_answer(503, "model_unavailable", message, retry_after_s)
    answer.more = told
    return answer


def judge(status: int) -> Judgement:
    """What a whole response with `status` says of its replica."""
    if status < _CLIENT_ERROR:
        return _OK
    if status in _BUSY:
        return _IS_BUSY
    return _CLIENTS_OWN if status < _SERVER_ERROR else _FAILED_INSIDE


class Dispatch:
    """One request's way through the replicas.

    Args:
        limits: The worker's limits.
        operation: What the path means; None for a path that is passed on blindly, or is the router's own.
    """

    # Most of these keep their defaults in most requests: class attributes cost nothing per request.
    peers: Sequence[Endpoint] = ()
    """Everybody who serves such requests, in whatever state."""
    attempts = 0
    tried: tuple[str, ...] = ()
    """Ids of those asked so far."""
    response: str | None = None
    """The stored response that it is about: only the replica that made it can answer."""
    is_own = False
    """The router answers it itself; nobody else is asked."""
    _moved_for_500 = False

    def __init__(self, limits: Limits, operation: Operation | None) -> None:
        self._limits = limits
        self._repeatable = operation is not None and operation.repeatable

    def choose(
        self, model: str | None, peers: Sequence[Endpoint], *, candidates: int, roomy: int, may_come: bool
    ) -> Action | LocalAnswer:
        """The request starts, room was made for it, or another replica is to be asked.

        Args:
            model: What it is for; None where it names none.
            peers: Everybody who serves such requests.
            candidates: How many of them may be asked, and were not yet.
            roomy: How many of those have room.
            may_come: It makes sense to ask again for a model that nobody serves.
        """
        self.peers = peers
        if roomy:
            return Action.ASK
        return Action.WAIT if candidates else self._nobody(model, may_come=may_come)

    def ask_only(self, endpoint: Endpoint) -> None:
        """The request is for the router itself."""
        self.peers = (endpoint,)
        self.is_own = True

    def asked(self, endpoint: Endpoint) -> None:
        """An attempt at `endpoint` begins."""
        self.attempts += 1
        self.tried = (*self.tried, endpoint.id)

    def take_back(self, endpoint: Endpoint) -> None:
        """The attempt at `endpoint` only showed that it is to be asked otherwise: it was none."""
        self.attempts -= 1
        self.tried = tuple(one for one in self.tried if one != endpoint.id)

    def answered(self, status: int, *, begun: bool, others: bool, budget: bool, suspect: bool) -> Action:
        """A response's head came.

        A 500 may be the request's own: it is asked elsewhere once, where asking twice does no harm, and only from a suspect.

        Args:
            status: The response's.
            begun: The client has bytes of a response already.
            others: There is another candidate.
            budget: The retry budget has one left.
            suspect: Others met errors there too, or the replica is leaving.
        """
        if status not in RETRIED or not self._may_ask_another(begun=begun, others=others and budget):
            return Action.RELAY
        if status == _SERVER_ERROR:
            if self._moved_for_500 or not (self._repeatable and suspect):
                return Action.RELAY
            self._moved_for_500 = True
        return Action.ASK

    def failed(self, failure: Failure, *, begun: bool, others: bool, budget: bool) -> Action | LocalAnswer:
        """An attempt ended without a response; for the arguments see `answered`."""
        may = self._may_ask_another(begun=begun, others=others and (budget or not failure.charged))
        if failure is UNREACHABLE and self.response is not None:
            return response_gone(self.response, "the replica that made it cannot be reached")
        return Action.ASK if may else failure.answer

    def overdue(
        self,
        now: float,
        started: float,
        *,
        sent_at: float = inf,
        last_byte_at: float = inf,
        queued_at: float = inf,
        retry_after_s: int = 0,
    ) -> Failure | None:
        """The deadline that has passed, if one has; all are moments on the monotonic clock, in seconds.

        Args:
            now: Now.
            started: When the request was whole.
            sent_at: When it was sent to a replica that has not answered yet.
            last_byte_at: When the latest byte of a response came that is not over.
            queued_at: When it began to wait for room.
            retry_after_s: When the queue should have moved on, for one that waits there.
        """
        limits = self._limits
        if now - started > limits.total_timeout_s:
            message = f"not answered within {limits.total_timeout_s:g} s"
            return Failure(AttemptVerdict.FAULT, AttemptOutcome.TIMED_OUT, LocalAnswer(504, "request_timeout", message))
        if now > sent_at + limits.first_byte_timeout_s:
            return _NO_FIRST_BYTE
        if now > last_byte_at + limits.idle_timeout_s:
            return FELL_SILENT
        if now > queued_at + limits.queue_timeout_s:
            answer = _queue_answer(503, "queue_timeout", "no replica had room in time", retry_after_s)
            return Failure(AttemptVerdict.NEUTRAL, AttemptOutcome.TIMED_OUT, answer)
        return None

    def _may_ask_another(self, *, begun: bool, others: bool) -> bool:
        alone = self.is_own or self.response is not None
        return others and not begun and not alone and self.attempts <= self._limits.max_retries

    def _nobody(self, model: str | None, *, may_come: bool) -> LocalAnswer:
        """503, and why: the model was never seen, or nobody serves it now (docs/faults.md D6).

        Official clients ask again twice, and wait as long as they are told: for a name that only a typing error has, they
        are told not to.
        """
        if self.tried:
            return LocalAnswer(503, "no_replica_left", "every replica that could be tried failed", _RETRY_LATER)
        if model is not None and not self.peers:
            again = _RETRY_LATER if may_come else _DO_NOT_RETRY
            return LocalAnswer(503, "model_not_found", f"No healthy services available for model '{model}'", again)
        return LocalAnswer(503, "no_healthy_replica", "No healthy services available", _RETRY_LATER)


def queue_is_full(retry_after_s: int) -> LocalAnswer:
    """The answer to a request that was to wait, and cannot."""
    return _queue_answer(429, "queue_full", "too many requests wait for this model", retry_after_s)


def deadline_passed(field: str, seconds: float) -> LocalAnswer:
    """The answer to a request whose client has no more time, by its own word."""
    if field == REQUEST_TIMEOUT:
        return LocalAnswer(504, "request_timeout", f"not answered within {seconds:g} s, as {field} asks")
    return LocalAnswer(504, "first_byte_timeout", f"no byte of an answer within {seconds:g} s, as {field} asks")


def deadline_too_near(field: str, seconds: float, eta_s: float) -> LocalAnswer:
    """The answer to a request whose turn will not come within the time that its client has."""
    message = f"its turn is expected in {eta_s:.1f} s, which is later than {field} allows ({seconds:g} s)"
    answer = _queue_answer(503, "deadline_too_near", message, max(1, min(RETRY_AFTER_LIMIT_S, ceil(eta_s))))
    answer.more = {"eta_s": round(eta_s, 1)}
    return answer


def _queue_answer(status: int, code: str, message: str, retry_after_s: int) -> LocalAnswer:
    return LocalAnswer(status, code, message, (b"retry-after", b"%d" % retry_after_s))
