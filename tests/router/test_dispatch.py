"""What happens to a request, without a socket: every event, and what is decided."""

from dataclasses import replace

import pytest

from router import dispatch
from router.counters import AttemptOutcome
from router.dispatch import RETRIED, Action, Dispatch, Failure, LocalAnswer, judge, queue_is_full
from router.model import Endpoint
from router.outlier import AttemptVerdict
from router.proxy.paths import PROXIED, Operation
from tests.router.fakes import LIMITS

CHAT, RESPONSES = PROXIED[b"/v1/chat/completions"], PROXIED[b"/v1/responses"]
ENDPOINTS = tuple(Endpoint(id=f"r{slot}", name=f"r{slot}", host="h", port=1, slot=slot) for slot in range(4))
LIMITED = replace(
    LIMITS, max_retries=2, first_byte_timeout_s=10, idle_timeout_s=20, total_timeout_s=100, queue_timeout_s=5
)
ALLOWED = {"begun": False, "others": True, "budget": True}
"""Nothing speaks against another replica."""
BEGUN, ALONE, NO_BUDGET = ALLOWED | {"begun": True}, ALLOWED | {"others": False}, ALLOWED | {"budget": False}
Case = dict[str, bool]


def asked(attempts: int = 1, operation: Operation | None = CHAT) -> Dispatch:
    """A request that has been sent to `attempts` replicas."""
    request = Dispatch(LIMITED, operation)
    for endpoint in ENDPOINTS[:attempts]:
        request.asked(endpoint)
    return request


def content(answer: Action | LocalAnswer) -> tuple[int, str, tuple[tuple[bytes, bytes], ...]]:
    assert isinstance(answer, LocalAnswer)
    return answer.status, answer.code, answer.headers


# -- it starts, or room was made


@pytest.mark.parametrize("attempts", [0, 1])
@pytest.mark.parametrize(
    ("candidates", "roomy", "expected"), [(3, 3, Action.ASK), (3, 1, Action.ASK), (3, 0, Action.WAIT)]
)
def test_a_request_waits_while_everybody_is_full(attempts: int, candidates: int, roomy: int, expected: Action) -> None:
    action = asked(attempts).choose("m", ENDPOINTS, candidates=candidates, roomy=roomy, may_come=True)
    assert action is expected


def test_a_full_queue_is_a_429_that_says_when_to_come_again() -> None:
    assert content(queue_is_full(7)) == (429, "queue_full", ((b"retry-after", b"7"),))


@pytest.mark.parametrize(
    ("attempts", "model", "peers", "may_come", "code", "header"),
    [
        (1, "m", ENDPOINTS, True, "no_replica_left", (b"retry-after", b"5")),
        (0, "m", (), True, "model_not_found", (b"retry-after", b"5")),
        (0, "typo", (), False, "model_not_found", (b"x-should-retry", b"false")),
        (0, "m", ENDPOINTS, True, "no_healthy_replica", (b"retry-after", b"5")),
        (0, None, (), False, "no_healthy_replica", (b"retry-after", b"5")),
    ],
)
def test_nobody_to_ask_says_why_D6(
    attempts: int, model: str | None, peers: tuple[Endpoint, ...], *, may_come: bool, code: str, header: object
) -> None:
    answer = asked(attempts).choose(model, peers, candidates=0, roomy=0, may_come=may_come)
    assert content(answer) == (503, code, (header,))


def test_those_asked_are_remembered() -> None:
    request = asked(2)
    assert (request.attempts, request.tried) == (2, ("r0", "r1"))


# -- a replica answered


@pytest.mark.parametrize("status", [200, 204, 301, 400, 401, 404, 422, 501])
def test_most_statuses_are_passed_on(status: int) -> None:
    assert asked().answered(status, **ALLOWED, suspect=True) is Action.RELAY


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize(
    ("attempts", "case", "expected"),
    [
        (1, ALLOWED, Action.ASK),
        (2, ALLOWED, Action.ASK),
        (3, ALLOWED, Action.RELAY),  # max_retries
        (1, NO_BUDGET, Action.RELAY),
        (1, BEGUN, Action.RELAY),
        (1, ALONE, Action.RELAY),
    ],
)
def test_a_busy_replica_is_passed_over_while_that_is_allowed_A20(
    status: int, attempts: int, case: Case, expected: Action
) -> None:
    assert asked(attempts).answered(status, **case, suspect=False) is expected


@pytest.mark.parametrize(
    ("operation", "suspect", "case", "expected"),
    [
        (CHAT, True, ALLOWED, Action.ASK),
        (CHAT, False, ALLOWED, Action.RELAY),  # it may be the request's own
        (CHAT, True, NO_BUDGET, Action.RELAY),
        (RESPONSES, True, ALLOWED, Action.RELAY),  # the first may have kept something
        (None, True, ALLOWED, Action.RELAY),  # nobody knows what asking twice does
    ],
)
def test_a_500_goes_elsewhere_only_from_a_suspect_and_where_that_does_no_harm(
    operation: Operation | None, *, suspect: bool, case: Case, expected: Action
) -> None:
    assert asked(operation=operation).answered(500, **case, suspect=suspect) is expected


def test_a_500_goes_elsewhere_once() -> None:
    request = asked()
    assert request.answered(500, **ALLOWED, suspect=True) is Action.ASK
    request.asked(ENDPOINTS[1])
    assert request.answered(500, **ALLOWED, suspect=True) is Action.RELAY


def test_the_routers_own_pages_are_asked_for_once() -> None:
    request = asked(0)
    request.ask_only(ENDPOINTS[0])
    request.asked(ENDPOINTS[0])
    assert request.answered(503, **ALLOWED, suspect=False) is Action.RELAY
    assert request.failed(dispatch.UNREACHABLE, **ALLOWED) is dispatch.UNREACHABLE.answer


@pytest.mark.parametrize(
    ("status", "verdict", "outcome"),
    [
        (200, AttemptVerdict.GOOD, AttemptOutcome.OK),
        (304, AttemptVerdict.GOOD, AttemptOutcome.OK),
        (404, AttemptVerdict.NEUTRAL, AttemptOutcome.CLIENT_ERROR),
        (429, AttemptVerdict.NEUTRAL, AttemptOutcome.BUSY),
        (500, AttemptVerdict.SERVER_ERROR, AttemptOutcome.SERVER_ERROR),
        (503, AttemptVerdict.NEUTRAL, AttemptOutcome.BUSY),
        (504, AttemptVerdict.SERVER_ERROR, AttemptOutcome.SERVER_ERROR),
    ],
)
def test_a_status_is_judged(status: int, verdict: AttemptVerdict, outcome: AttemptOutcome) -> None:
    judgement = judge(status)
    assert (judgement.verdict, judgement.outcome) == (verdict, outcome)
    assert judgement.charged is (status in RETRIED)


# -- an attempt failed

FREE = (dispatch.UNREACHABLE, dispatch.UNCONNECTED, dispatch.CLOSED, dispatch.SPOKE_TLS, dispatch.TRUNCATED, dispatch.INCOMPLETE)  # fmt: skip


@pytest.mark.parametrize(
    ("failure", "verdict", "outcome", "status", "code"),
    [
        (dispatch.UNREACHABLE, AttemptVerdict.REFUSED, AttemptOutcome.CONNECT_FAILED, 503, "connect_failed"),
        (dispatch.UNCONNECTED, AttemptVerdict.FAULT, AttemptOutcome.CONNECT_FAILED, 503, "connect_failed"),
        (dispatch.CLOSED, AttemptVerdict.BROKEN, AttemptOutcome.DIED, 502, "upstream_died"),
        (dispatch.SPOKE_TLS, AttemptVerdict.BROKEN, AttemptOutcome.DIED, 502, "upstream_died"),
        (dispatch.TRUNCATED, AttemptVerdict.BROKEN, AttemptOutcome.DIED, 502, "upstream_died"),
        (dispatch.INCOMPLETE, AttemptVerdict.BROKEN, AttemptOutcome.TRUNCATED, 502, "upstream_truncated"),
        (dispatch.MALFORMED, AttemptVerdict.BROKEN, AttemptOutcome.MALFORMED, 502, "upstream_malformed"),
        (dispatch.STOPPING, AttemptVerdict.NEUTRAL, AttemptOutcome.CLIENT_GONE, 503, "router_stopping"),
    ],
)
def test_a_failure_is_judged_and_told(
    failure: Failure, verdict: AttemptVerdict, outcome: AttemptOutcome, status: int, code: str
) -> None:
    assert (failure.verdict, failure.outcome) == (verdict, outcome)
    assert content(failure.answer) == (status, code, ())


@pytest.mark.parametrize("failure", [*FREE, dispatch.MALFORMED])
@pytest.mark.parametrize(
    ("attempts", "case", "retried"),
    [
        (1, ALLOWED, True),
        (2, ALLOWED, True),
        (3, ALLOWED, False),  # max_retries
        (1, BEGUN, False),
        (1, ALONE, False),
    ],
)
def test_a_failure_is_tried_elsewhere_or_answered(
    failure: Failure, attempts: int, case: Case, *, retried: bool
) -> None:
    assert asked(attempts).failed(failure, **case) is (Action.ASK if retried else failure.answer)


def test_an_empty_budget_moves_the_dead_ones_requests_and_no_others_A1_D8() -> None:
    assert {asked().failed(failure, **NO_BUDGET) for failure in FREE} == {Action.ASK}
    assert asked().failed(dispatch.MALFORMED, **NO_BUDGET) is dispatch.MALFORMED.answer


# -- a deadline passed


@pytest.mark.parametrize(
    ("now", "since", "code"),
    [
        (110, {"sent_at": 100.0}, None),
        (110.1, {"sent_at": 100.0}, "first_byte_timeout"),
        (120, {"last_byte_at": 100.0}, None),
        (120.1, {"last_byte_at": 100.0}, "idle_timeout"),
        (105, {"queued_at": 100.0}, None),
        (105.1, {"queued_at": 100.0}, "queue_timeout"),
        (190, {}, None),
        (190.1, {}, "request_timeout"),
        (190.1, {"last_byte_at": 189.0}, "request_timeout"),
        (190.1, {"queued_at": 100.0}, "request_timeout"),
    ],
)
def test_a_deadline_is_passed_by_the_moment_it_names(now: float, since: dict[str, float], code: str | None) -> None:
    failure = asked().overdue(now, 90.0, **since, retry_after_s=7)
    assert (failure.answer.code if failure is not None else None) == code
    if failure is not None:
        assert failure.answer.status == (503 if code == "queue_timeout" else 504)
        assert failure.answer.headers == (((b"retry-after", b"7"),) if code == "queue_timeout" else ())
        assert failure.verdict is (AttemptVerdict.NEUTRAL if code == "queue_timeout" else AttemptVerdict.FAULT)
