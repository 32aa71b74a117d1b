"""Rates and percentiles from counters, and what the router says of itself."""

import pytest

import router.counters
from common.names import is_service_name
from router.advertise import own_url, presence, router_name
from router.control.traffic import POINTS_KEPT, KeyRates, TrafficHistory, TrafficSample, quantile
from router.counters import (
    BOUNDS_S,
    DURATION,
    FIELDS,
    FINISHED,
    FIRST_BYTE,
    GAP,
    HEAD_BYTES,
    OUTCOMES,
    QUEUE_WAIT,
    REASONS,
    REQUESTS,
    AttemptOutcome,
    Shape,
    SharedCounters,
)


def row(**counts: int) -> list[int]:
    made = [0] * FIELDS
    for name, count in counts.items():
        made[getattr(router.counters, name)] = count
    return made


def sample(second: float, **rows: list[int]) -> TrafficSample:
    return TrafficSample(at=1e9 + second, now=second, rows=rows, queue=row())


def test_two_samples_make_a_point_of_rates() -> None:
    traffic = TrafficHistory()
    traffic.add(sample(0, a=row(REQUESTS=100, RETRIES=5)))
    assert list(traffic.points) == []
    later = row(REQUESTS=112, RETRIES=7, IN_FLIGHT=3, EJECTIONS=1, PROMPT_TOKENS=80, CACHED_TOKENS=20, WRITTEN_TOKENS=6)
    later[OUTCOMES + AttemptOutcome.DIED] = 2
    later[OUTCOMES + AttemptOutcome.CLIENT_ERROR] = 4
    traffic.add(sample(2, a=later))
    (point,) = traffic.points
    assert (point.requests_s, point.retries_s, point.errors_s) == (5.0, 1.0, 1.0)
    assert (point.in_flight, point.ejections, point.first_byte_s) == (3, 1, None)
    assert (point.prompt_tokens_s, point.cached_tokens_s, point.completion_tokens_s) == (40.0, 10.0, 3.0)
    assert traffic.rates["a"] == (5.0, 1.0)


def test_an_endpoint_that_came_or_went_is_not_taken_for_another_D27() -> None:
    traffic = TrafficHistory()
    traffic.add(sample(0, gone=row(REQUESTS=1000)))
    traffic.add(sample(2, new=row(REQUESTS=10)))
    assert traffic.points[-1].requests_s == 5.0
    traffic.add(sample(4))
    assert (traffic.points[-1].requests_s, traffic.points[-1].in_flight) == (0.0, 0)
    traffic.add(sample(6, new=row(REQUESTS=4)))
    traffic.add(sample(8, new=row(REQUESTS=2)))
    assert traffic.points[-1].requests_s == 0.0


def test_only_a_quarter_of_an_hour_is_kept_and_later_points_can_be_asked_for() -> None:
    traffic = TrafficHistory()
    for second in range(POINTS_KEPT + 10):
        traffic.add(sample(second, a=row(REQUESTS=second)))
    assert len(traffic.points) == POINTS_KEPT
    assert len(traffic.since(0)) == POINTS_KEPT
    assert [point.at for point in traffic.since(1e9 + POINTS_KEPT + 7)] == [
        1e9 + POINTS_KEPT + 8,
        1e9 + POINTS_KEPT + 9,
    ]


@pytest.mark.parametrize(
    ("filled", "share", "expected"),
    [
        ({0: 10}, 0.5, 0.0005),
        ({2: 10}, 0.5, 0.00375),
        ({2: 5, 4: 5}, 0.5, 0.005),
        ({2: 5, 4: 5}, 0.9, 0.022),
        ({len(BOUNDS_S): 3}, 0.5, BOUNDS_S[-1]),
    ],
)
def test_percentiles_are_read_from_buckets(filled: dict[int, int], share: float, expected: float) -> None:
    counts = [filled.get(bucket, 0) for bucket in range(len(BOUNDS_S) + 1)]
    assert quantile(counts, share) == pytest.approx(expected)


def test_a_row_is_summed_over_workers() -> None:
    shape = Shape(slots=2, blocks=2)
    descriptor = SharedCounters.create(shape)
    both = [SharedCounters(descriptor, shape, worker) for worker in (0, 1)]
    for counters in both:
        counters.add(1, REQUESTS, 5)
        counters.tally(1).observe(FIRST_BYTE, 0.004)
        counters.flush()
    found = both[0].row(1)
    assert (len(found), found[REQUESTS], found[FIRST_BYTE + 2]) == (FIELDS, 10, 2)
    assert both[0].row(0) == [0] * FIELDS
    assert both[0].row(1) is found
    both[1].add(1, REQUESTS, 1)
    assert both[0].row(1)[REQUESTS] == 11
    assert found[REQUESTS] == 10
    for counters in both:
        counters.close()


def test_no_two_cells_of_a_row_are_one() -> None:
    """Their numbers are written out."""
    ends = [OUTCOMES + len(AttemptOutcome), FINISHED + len(REASONS)]
    ends += [start + len(BOUNDS_S) + 2 for start in (FIRST_BYTE, GAP, DURATION, QUEUE_WAIT)]
    assert ends == [FINISHED, FIRST_BYTE, GAP, DURATION, QUEUE_WAIT, FIELDS]
    assert HEAD_BYTES + 1 == OUTCOMES


def test_a_router_says_where_it_is() -> None:
    assert own_url("n", "127.0.0.1", 8000, None) == "http://127.0.0.1:8000"
    assert own_url("n", "::1", 8000, None) == "http://[::1]:8000"
    assert own_url("n", "0.0.0.0", 8000, None) == "http://n:8000"
    assert own_url("n", "0.0.0.0", 8000, "https://llm.example/") == "https://llm.example"
    assert router_name("-node 1_.", 8000) == "router-node-1_-8000"
    assert is_service_name(router_name("x" * 300, 65535))
    assert set(presence("127.0.0.1", 8000, None)) == {"router", "router_url"}


def test_what_keys_used_of_late_is_told_with_the_greatest_first() -> None:
    rates = KeyRates()
    assert rates.rates() == []
    rates.add(0.0, {("old", "m", ""): (5, 50, 0, 5, 0, 0)})
    for second in range(2, 22, 2):
        now = (second, 100 * second, 0, 10 * second, 0, 0)
        rates.add(
            float(second),
            {
                ("old", "m", ""): (5, 50, 0, 5, 0, 0),
                ("a", "m", ""): now,
                ("a", "n", ""): now,
                ("b", "m", ""): (second, 0, 0, 1, 0, 0),
            },
        )
    first, second_one = rates.rates()
    assert (first.key, first.requests_s, first.prompt_tokens_s, first.completion_tokens_s) == ("a", 2.0, 200.0, 20.0)
    assert (second_one.key, second_one.requests_s) == ("b", 1.0)
