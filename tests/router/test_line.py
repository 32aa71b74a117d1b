"""Who waits in the router for a replica that has enough to read, and whose turn is next."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy.fleet_view import FleetView
from router.policy.line import PATIENCE, InLine, Line
from router.policy.placed import PlacedRequest
from router.policy.replica_view import ReplicaView
from tests.router.test_policy import endpoint
from tests.router.test_policy_rules import facts, serve, text

NORMAL, LOW = 1, 2
BYTES_S = 1e-3
"""Seconds of reading for each byte, in these tests."""


def ignore() -> None:
    """Nobody is sent anywhere."""


def begun(line: Line, at: float) -> dict[InLine, float]:
    """When each begins to be read, if they go one after the other from `at` on."""
    found = {}
    while len(line):
        one = line.next(at, BYTES_S)
        line.leave(one)
        found[one] = at
        at += one.work_bytes * BYTES_S
    return found


def line_of(*those: tuple[float, int, int]) -> tuple[Line, list[InLine]]:
    line, made = Line(), [InLine(due, urgency, work_bytes, ignore) for due, urgency, work_bytes in those]
    for one in made:
        line.join(one)
    return line, made


def test_the_shortest_goes_first_where_the_others_can_wait() -> None:
    line, (long, short) = line_of((10.0, NORMAL, 4000), (12.0, NORMAL, 100))
    assert list(begun(line, 5.0)) == [short, long]


def test_it_does_not_where_somebody_would_come_too_late() -> None:
    line, (long, short) = line_of((5.05, NORMAL, 4000), (12.0, NORMAL, 100))
    assert list(begun(line, 5.0)) == [long, short]


def test_a_more_urgent_one_goes_before_a_shorter_one() -> None:
    line, (low, normal) = line_of((10.0, LOW, 10), (12.0, NORMAL, 1000))
    assert list(begun(line, 5.0)) == [normal, low]


@given(st.lists(st.tuples(st.integers(1, 3000), st.floats(0, 3)), min_size=1, max_size=30), st.integers(0, 2**32))
def test_nobody_who_would_have_had_its_turn_in_time_has_it_later(those: list[tuple[int, float]], seed: int) -> None:
    """Arrivals between turns too: the property holds for each, by the wait that was before it when it came."""
    rng = random.Random(seed)
    line, now, free_at = Line(), 0.0, 0.0
    due: dict[InLine, float] = {}
    coming = list(those)
    while coming or len(line):
        while coming and (not len(line) or rng.random() < 0.5):
            work_bytes, after_s = coming.pop()
            if not len(line):
                now += after_s
            ahead_s = max(0.0, free_at - now) + line.work_bytes * BYTES_S
            one = InLine(now + PATIENCE * ahead_s, NORMAL, work_bytes, ignore)
            due[one] = now + PATIENCE * ahead_s
            line.join(one)
        at = max(now, free_at)
        one = line.next(at, BYTES_S)
        line.leave(one)
        assert at <= due[one] + 1e-6
        free_at = now = at + one.work_bytes * BYTES_S


# -- a replica's view ------------------------------------------------------------------------------------------------------


def view_that_reads(s_per_kb: float = 0.1, read_ahead_s: float = 1.0) -> tuple[FleetView, ReplicaView]:
    """A fleet of one whose pace is known: 0.8 s for 8 KiB."""
    fleet = FleetView(read_ahead_s=read_ahead_s)
    one = endpoint("a")
    for number in range(8):
        serve(fleet, one, facts(text(1000 + number)), number * 10.0, 8.192 * s_per_kb)
    return fleet, fleet.view(one)


def come(
    view: ReplicaView, sent: list[int], number: int, now: float, parts: int = 1, *, stream: bool = True
) -> PlacedRequest:
    """A prompt of so many times 8 KiB comes; when it is sent on, `number` is in `sent`."""
    placement = view.place(facts(text(*range(number * 100, number * 100 + parts)), stream=stream), now)
    placement.is_patient = True
    if placement.must_wait(now):
        placement.wait(NORMAL, lambda: sent.append(number), now)
    else:
        sent.append(number)
    return placement


def test_a_replica_with_little_to_read_gets_all_at_once() -> None:
    _, view = view_that_reads()
    sent: list[int] = []
    come(view, sent, 1, 100.0)
    come(view, sent, 2, 100.0)
    assert sent == [1, 2], "the second one finds 0.8 s"


def test_beyond_the_next_second_prompts_wait_and_the_short_one_goes_first() -> None:
    _, view = view_that_reads()
    sent: list[int] = []
    those = [come(view, sent, number, 100.0, parts) for number, parts in ((1, 8), (2, 4), (3, 4), (4, 1))]
    assert sent == [1]
    assert view.in_flight == 4
    assert view.backlog_s(100.0) == pytest.approx(17 * 0.8192, rel=0.05), "those that wait are work, too"
    those[0].first_byte(106.6)
    assert sent == [1, 4, 2], "the short one, and as that is less than a second, another"
    those[3].first_byte(107.4)
    assert sent == [1, 4, 2]
    those[1].first_byte(110.7)
    assert sent == [1, 4, 2, 3]


def test_time_gives_turns_where_no_first_byte_tells() -> None:
    fleet, view = view_that_reads()
    sent: list[int] = []
    for number in (1, 2, 3):
        come(view, sent, number, 100.0, 3, stream=False)
    assert sent == [1]
    fleet.settle(101.0)
    assert sent == [1], "1.4 s are left"
    fleet.settle(101.8)
    assert sent == [1, 2]


def test_a_prompt_that_never_gets_its_first_byte_keeps_nobody_waiting_for_ever() -> None:
    fleet, view = view_that_reads()
    sent: list[int] = []
    come(view, sent, 1, 100.0, 3)
    come(view, sent, 2, 100.0, 1)
    fleet.settle(102.9)
    assert sent == [1, 2]


@pytest.mark.parametrize("way", ["given up", "its replica gone"])
def test_who_waits_can_leave(way: str) -> None:
    fleet, view = view_that_reads()
    sent: list[int] = []
    first = come(view, sent, 1, 100.0, 4)
    second = come(view, sent, 2, 100.0, 4)
    if way == "given up":
        second.over(101.0)
        assert view.in_flight == 1
        first.over(103.3)
        assert sent == [1]
        assert (view.work_bytes, view.in_flight, len(view.line)) == (0, 0, 0)
    else:
        fleet.keep((), 101.0)
        assert sent == [1, 2], "it goes there to find out"


@pytest.mark.parametrize("why", ["off", "no pace is known", "its policy reads no prompts"])
def test_nobody_waits(why: str) -> None:
    fleet, view = view_that_reads(read_ahead_s=0.0 if why == "off" else 1.0)
    if why == "no pace is known":
        fleet = FleetView(read_ahead_s=1.0)
        view = fleet.view(endpoint("b"))
    waits: list[bool] = []
    for number in range(5):
        placement = view.place(facts(text(*range(number * 10, number * 10 + 4))), 100.0)
        placement.is_patient = why != "its policy reads no prompts"
        waits.append(placement.must_wait(100.0))
    assert not any(waits)


def test_all_that_come_and_go_by_chance_leave_nothing_behind() -> None:
    rng = random.Random(7)
    fleet, view = view_that_reads()
    sent: list[int] = []
    under_way: list[tuple[int, PlacedRequest]] = []
    now = 100.0
    for number in range(300):
        now += rng.random()
        under_way.append((number, come(view, sent, number, now, rng.randint(1, 6), stream=rng.random() < 0.7)))
        for other, placement in rng.sample(under_way, rng.randint(0, min(3, len(under_way)))):
            if other in sent and rng.random() < 0.8:
                placement.first_byte(now)
            else:
                placement.over(now)
                under_way.remove((other, placement))
        fleet.settle(now)
    _end(under_way, now)
    assert (view.work_bytes, view.outstanding, view.in_flight, len(view.line)) == (0, 0, 0, 0)


def _end(under_way: Sequence[tuple[int, PlacedRequest]], now: float) -> None:
    for _, placement in under_way:
        placement.over(now)
