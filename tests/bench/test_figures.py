import pytest

from bench.router.figures import (
    DIRECT,
    NGINX,
    OURS,
    SGLANG,
    Sample,
    Spread,
    Streams,
    added_us,
    bound_table,
    bounds,
    cost_rows,
    cpu_ratio,
    odd_bodies,
    ratios,
    spread,
    table,
)


def sample(target: str, repetition: int, cpu_us: float, *, workload: str = "w1", **other: float) -> Sample:
    values: dict[str, float] = {
        "system_us": cpu_us / 2,
        "per_second": 1e6 / cpu_us,
        "core_share": 1.0,
        "duration_us": 100.0,
        "duration_p99_us": 200.0,
        "first_byte_us": 50.0,
        "body_bytes": 571.0,
        "memory_mb": 20.0,
    }
    return Sample(target, workload, repetition, requests=1000, cpu_us=cpu_us, faults=0, **{**values, **other})


def streams(**other: float) -> Streams:
    values: dict[str, float] = {
        "asked": 100,
        "ended": 100,
        "faults": 0,
        "chunks": 30,
        "interval_s": 1.0,
        "kb_per_stream": 12.0,
        "cpu_us_per_chunk": 20.0,
        "silence_p50_s": 1.0,
        "silence_max_s": 1.4,
        "first_byte_max_s": 1.2,
    }
    return Streams(OURS, **{**values, **other})  # type: ignore[arg-type]


def test_spread_is_the_median_with_its_extremes() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0, 4)
    assert str(spread([3.0, 1.0, 2.0])) == "2.00 (1.00-3.00, n=3)"
    assert spread([]) is None


def test_ratios_pair_what_was_measured_in_the_same_repetition() -> None:
    assert ratios({0: 10.0, 1: 30.0, 3: 1.0}, {0: 20.0, 1: 10.0, 2: 5.0}) == [0.5, 3.0]


def test_ratios_leave_out_what_cannot_be_divided_by() -> None:
    assert ratios({0: 10.0, 1: 4.0}, {0: 0.0, 1: 8.0}) == [0.5]


def test_cpu_ratio_holds_when_the_machine_slows_down_for_both() -> None:
    samples = [sample(OURS, 0, 20), sample(SGLANG, 0, 60), sample(OURS, 1, 40), sample(SGLANG, 1, 120)]
    assert cpu_ratio(samples, "w1", OURS, SGLANG) == Spread(1 / 3, 1 / 3, 1 / 3, 2)
    assert cpu_ratio(samples, "w1", OURS, NGINX) is None
    assert cpu_ratio(samples, "w2", OURS, SGLANG) is None


def test_added_time_is_that_over_direct_in_the_same_repetition() -> None:
    samples = [
        sample(name, turn, 10, duration_us=us) for name, turn, us in [(DIRECT, 0, 40), (OURS, 0, 100), (OURS, 1, 7)]
    ]
    assert added_us(samples, "w1", OURS, lambda s: s.duration_us) == {0: 60.0}


def judged(cpu_of_ours: float) -> dict[str, bool | None]:
    samples = [sample(name, 0, us) for name, us in [(DIRECT, 2), (NGINX, 12), (SGLANG, 60), (OURS, cpu_of_ours)]]
    return {bound.what: bound.holds for bound in bounds(samples, None)}


@pytest.mark.parametrize(("cpu_us", "holds"), [(24.0, True), (24.1, False)])
def test_a_bound_holds_up_to_its_limit(cpu_us: float, holds: bool) -> None:  # noqa: FBT001 - a table of cases
    assert judged(cpu_us)["W1: CPU per request, ours / sglang"] is holds


def test_a_bound_without_figures_is_neither_held_nor_missed() -> None:
    assert judged(24.0)["W3: CPU per request, ours / sglang"] is None


def test_added_latency_is_compared_without_what_direct_takes() -> None:
    samples = [
        sample(name, 0, 10, workload="w1c1", duration_us=us) for name, us in [(DIRECT, 50), (SGLANG, 150), (OURS, 90)]
    ]
    found = {bound.what: bound.measured for bound in bounds(samples, None)}
    assert found["one client: added p50, ours / sglang"] == "0.40 (0.40-0.40, n=1)"


@pytest.mark.parametrize(
    ("other", "starved"),
    [({}, False), ({"silence_max_s": 3.1}, True), ({"ended": 99}, True), ({"faults": 1}, True)],
)
def test_a_stream_is_starved_that_waits_for_three_chunks_or_never_ends(other: dict[str, float], starved: bool) -> None:  # noqa: FBT001 - a table of cases
    assert streams(**other).starved is starved


def test_the_bounds_of_streams_are_judged() -> None:
    found = [(bound.limit, bound.holds) for bound in bounds([], streams(kb_per_stream=30.1))][-2:]
    assert found == [("≤ 30", False), ("0", True)]


def test_table_is_markdown_with_its_columns_aligned() -> None:
    assert table(("who", "µs"), [("nginx", "12"), ("ours", "1,024")]).splitlines() == [
        "| who   |    µs |",
        "| ----- | ----: |",
        "| nginx |    12 |",
        "| ours  | 1,024 |",
    ]


def test_cost_rows_quote_ratios_of_pairs_and_no_ratio_of_direct() -> None:
    samples = [
        *(sample(DIRECT, turn, 2, duration_us=40) for turn in (0, 1)),
        *(sample(NGINX, turn, us, duration_us=100) for turn, us in [(0, 10), (1, 20)]),
        *(sample(OURS, turn, us, duration_us=140) for turn, us in [(0, 20), (1, 40)]),
    ]
    direct, ours = cost_rows(samples, "w1", [DIRECT, SGLANG, OURS])
    assert direct[0] == DIRECT
    assert direct[4:6] == ["", ""]
    assert ours[:6] == [OURS, "30.0", "20-40", "15.0", "2.00", ""]
    assert ours[8] == "0.100"


def test_bound_table_says_what_was_missed() -> None:
    text = bound_table(bounds([sample(SGLANG, 0, 50), sample(OURS, 0, 40)], None))
    assert "MISSED" in text
    assert "not measured" in text


def test_answers_of_another_size_are_told() -> None:
    samples = [sample(DIRECT, 0, 2), sample(NGINX, 0, 10), sample(SGLANG, 0, 60, body_bytes=208.0)]
    assert odd_bodies(samples) == ["w1: answers through sglang have 208.0 bytes, direct ones 571.0"]
