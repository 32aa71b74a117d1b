"""ETA of a start: by the stages of earlier ones."""

import random
from statistics import median
from typing import Any

import pytest

from registry.deployments.timing import FLOOR_S, KEPT, StartTimes, estimate, usual_s

FOUR = StartTimes((40.0, 44.0, 36.0, 60.0), tuple({"load": 10.0, "warm up": total - 5} for total in (40, 44, 36, 60)))


def test_nothing_is_known_before_the_first_start() -> None:
    assert estimate([], 3.0) is None
    assert estimate([StartTimes()], 3.0, "load", 1.0) is None
    assert usual_s([StartTimes()]) is None


@pytest.mark.parametrize(
    ("under", "expected"),
    [
        ((0.0,), (0, 42.0)),
        ((21.0,), (50, 21.0)),
        ((10.0, "load", 10.0), (23, 32.0)),
        ((30.0, "load", 25.0), (52, 27.0)),  # 15 s late into the stage: what follows is as long as ever
        ((100.0, "warm up", 98.0), (97, 3.0)),
        ((10.0, "never seen", 9.0), (23, 32.0)),
        ((50.0, "load", 10.0), (83, 10.0)),  # longer than the median: as the one that took longer
        ((900.0, "load", 10.0), (99, FLOOR_S)),
        ((-5.0,), (0, 47.0)),
    ],
)
def test_the_stage_corrects_what_is_left(under: tuple[Any, ...], expected: tuple[int, float]) -> None:
    assert estimate([FOUR], *under) == expected


def test_other_nodes_and_the_template_help_where_the_node_knows_nothing() -> None:
    assert estimate([StartTimes(), FOUR], 0.0) == (0, 42.0)
    assert estimate([StartTimes((7.0,), ({},)), FOUR], 0.0) == (0, 7.0)
    assert usual_s([StartTimes(), FOUR]) == 42.0


def test_the_last_ten_count() -> None:
    times = StartTimes()
    for number in range(25):
        times = times.learned(float(number), {"load": 1.0})
    assert times.total_s == tuple(float(number) for number in range(15, 25))
    assert len(times.stages) == KEPT
    many = StartTimes().learned(1.0, {str(number): 0.0 for number in range(1000)})
    assert len(many.stages[0]) == 32


def _noisy(rng: random.Random, usual: dict[str, float]) -> tuple[float, dict[str, float]]:
    """Each stage takes its usual time, more or less; one start in eight reads from a cold disk and loads for twice as long."""
    at, stages = 0.0, {}
    for stage, usual_stage_s in usual.items():
        stages[stage] = at
        cold = 2.0 if stage == "load" and rng.random() < 1 / 8 else 1.0
        at += usual_stage_s * cold * rng.lognormvariate(0.0, 0.2)
    return at, stages


def test_the_median_error_is_at_most_a_quarter_from_the_fourth_start_on() -> None:
    rng = random.Random(20)
    at_first: list[float] = []
    on_the_way: list[float] = []
    for _ in range(200):
        usual = {
            "spawn": rng.uniform(0.5, 5),
            "load": rng.uniform(3, 200),
            "compile": rng.uniform(0, 60),
            "warm up": 5.0,
        }
        times = StartTimes()
        for number in range(1, 13):
            total_s, stages = _noisy(rng, usual)
            if number >= 4:
                for share in (0.0, *(rng.random() for _ in range(5))):
                    elapsed_s = share * total_s
                    stage = max(
                        (one for one in stages if stages[one] <= elapsed_s),
                        key=lambda one: stages[one],
                    )
                    found = estimate([times], elapsed_s, stage, stages[stage])
                    assert found is not None
                    left_s = total_s - elapsed_s
                    (on_the_way if share else at_first).append(abs(found[1] - left_s) / left_s)
            times = times.learned(total_s, stages)
    assert median(at_first) <= 0.25
    assert median(on_the_way) <= 0.25
