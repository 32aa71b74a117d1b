"""Pauses before a registry is asked again: short while a node starts, longer and longer for one that went away."""

from common.discovery.pause import Pause


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def longest(pause: Pause, times: int) -> list[bool]:
    """For each pause whether it is from half of what is expected to all of that, when each is twice the one before."""
    return [most / 2 <= pause.next_s() <= most for most in (min(0.5 * 2**n, 10.0) for n in range(times))]


def test_one_that_was_not_reached_since_the_start_is_asked_again_soon() -> None:
    clock = Clock()
    pause = Pause(clock=clock)
    for _ in range(30):
        length_s = pause.next_s()
        assert 0.25 <= length_s <= 0.5
        clock.now += length_s / 4
    assert clock.now < 110


def test_pauses_grow_once_the_start_is_over_C3() -> None:
    clock = Clock()
    pause = Pause(clock=clock)
    clock.now += 10.1
    assert longest(pause, 8) == [True] * 8


def test_pauses_grow_at_once_when_one_that_was_reached_goes_away_C3() -> None:
    pause = Pause(clock=Clock())
    for _ in range(2):
        pause.reached()
        assert longest(pause, 8) == [True] * 8


def test_no_two_who_wait_ask_in_step_C3() -> None:
    assert len({Pause().next_s() for _ in range(50)}) == 50
