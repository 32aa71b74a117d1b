"""How long to wait, and which exits count."""

import pytest

from babysitter import backoff


@pytest.mark.parametrize(
    ("failures", "expected_s"),
    [(0, 1), (1, 2), (2, 4), (3, 8), (4, 16), (5, 32), (6, 60), (7, 60), (10_000, 60)],
)
def test_delay_doubles_to_its_limit_A6(failures: int, expected_s: float) -> None:
    assert backoff.delay_s(failures, first_s=1, last_s=60, chance=0.5) == expected_s


@pytest.mark.parametrize(("chance", "expected_s"), [(0.0, 8.0), (0.5, 10.0), (0.75, 11.0)])
def test_delay_jitters_by_a_fifth_B19(chance: float, expected_s: float) -> None:
    assert backoff.delay_s(1, first_s=5, last_s=60, chance=chance) == pytest.approx(expected_s)


def test_delay_longer_than_the_limit_stays_as_configured() -> None:
    assert backoff.delay_s(3, first_s=90, last_s=60, chance=0.5) == 90


def test_recent_forgets_what_is_older_than_the_window() -> None:
    assert backoff.recent([0, 50, 100], now=110, window_s=60) == (100,)
    assert backoff.recent([0, 50, 100], now=109.9, window_s=60) == (50, 100)
