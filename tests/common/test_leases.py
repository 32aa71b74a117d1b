"""What is lent of a limit: never more than there is, whatever holders say and in whatever order."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.leases import Lender, Minute, Now, Period, limits_of
from common.wire.leases import LeaseGrant, LeaseRow

BEGAN = datetime(2026, 1, 31, 23, 59, 0, tzinfo=UTC)


def at(seconds: float) -> Now:
    return Now(1000.0 + seconds, BEGAN + timedelta(seconds=seconds))


def key(**limits: Any) -> Any:
    names = ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "tokens_per_month", "max_in_flight")
    return SimpleNamespace(**{name: limits.get(name) for name in names})


def lender(**limits: Any) -> Lender:
    made = Lender()
    made.limit({"k": limits_of(key(**limits))})
    return made


def ask(one: Lender, now: Now, holder: str = "a", unit: str = "requests", **row: int) -> LeaseGrant:
    return one.report({holder: {"k": {unit: LeaseRow(**row)}}}, now)[holder]["k"][unit]


def test_what_is_granted_is_held_and_half_stays_with_the_lender() -> None:
    one = lender(requests_per_minute=60)
    first = ask(one, at(0), need=1, want=100)
    assert (first.granted, first.left, first.limit) == (30, 30, 60)
    assert ask(one, at(0), "b", need=1, want=100).granted == 15
    assert ask(one, at(0), "a", held=30, need=20, want=20).granted == 15  # all that there is
    assert ask(one, at(0), "c", need=1).granted == 0


def test_what_is_given_back_is_lent_again_and_an_answer_that_was_lost_costs_nothing() -> None:
    one = lender(requests_per_minute=10)
    assert ask(one, at(0), need=10).granted == 10
    assert ask(one, at(1), need=10).granted == 10  # it does not hold what it never heard of
    assert ask(one, at(2), held=10).left == 0
    assert ask(one, at(3), held=4, used=6).left == 0
    assert ask(one, at(4), held=0, used=6).left == 4


def test_use_counts_once_though_it_is_told_again() -> None:
    one = lender(requests_per_minute=10)
    for _ in range(3):
        assert ask(one, at(0), used=4).left == 6
    assert ask(one, at(0), "b", used=9, told=8).left == 5  # another lender knows of eight


def test_a_minute_is_any_sixty_seconds_and_says_when_there_is_more() -> None:
    one = lender(requests_per_minute=3)
    ask(one, at(0.5), used=1)
    ask(one, at(30), used=3)
    none = ask(one, at(40), used=3, need=1)
    assert (none.granted, none.left) == (0, 0)
    assert none.again_in_s == pytest.approx(21.0)
    assert ask(one, at(60.9), used=3, need=1).granted == 0
    assert ask(one, at(61), used=3, need=3).granted == 1
    assert ask(one, at(91), used=3, need=3).granted == 3


def test_what_others_hold_may_come_back_soon() -> None:
    one = lender(requests_per_minute=4)
    ask(one, at(0), "b", need=4)
    assert ask(one, at(0), "a", need=1).again_in_s == 1.0


def test_days_and_months_are_utcs_and_a_clock_set_back_opens_nothing() -> None:
    one = lender(tokens_per_day=100, tokens_per_month=150)
    ask(one, at(0), unit="tokens", used=90)
    grant = ask(one, at(1), unit="tokens", used=90, need=20)
    assert (grant.granted, grant.limit) == (10, 100)
    assert grant.again_in_s == pytest.approx(59.0)
    assert ask(one, at(1), unit="tokens", used=100).left == 0
    assert ask(one, at(61), unit="tokens", used=100).left == 100  # in February both are new
    ask(one, at(61), unit="tokens", used=130)
    assert ask(one, at(-1), unit="tokens", used=130).left == 70
    assert ask(one, at(62), unit="tokens", used=130).left == 100  # a new day again; the month goes on likewise
    leap = Now(0.0, datetime(2028, 2, 29, 12, tzinfo=UTC))
    assert Period(1, "%Y-%m").full_in_s(leap) == Period(1, "%Y-%m-%d").full_in_s(leap) == 12 * 3600


def test_requests_under_way_hold_their_place_until_they_end() -> None:
    one = lender(max_in_flight=2)
    assert ask(one, at(0), "a", "in_flight", need=2).granted == 2
    none = ask(one, at(500), "b", "in_flight", need=1)
    assert (none.granted, none.again_in_s) == (0, 1.0)
    ask(one, at(501), "a", "in_flight", held=1)
    assert ask(one, at(501), "b", "in_flight", need=1).granted == 1


def test_who_gives_back_is_heard_before_anybody_is_granted() -> None:
    one = lender(max_in_flight=1)
    ask(one, at(0), "b", "in_flight", need=1)
    rows = {"a": {"k": {"in_flight": LeaseRow(need=1)}}, "b": {"k": {"in_flight": LeaseRow()}}}
    assert one.report(rows, at(1))["a"]["k"]["in_flight"].granted == 1


def test_what_a_dead_worker_held_counts_as_used_for_a_minute_and_not_for_the_day() -> None:
    one = lender(tokens_per_minute=100, tokens_per_day=100)
    ask(one, at(-3600), unit="tokens", need=40)
    one.forget("a", at(-3600))
    assert ask(one, at(-3590), "b", "tokens").left == 60
    assert ask(one, at(-3500), "b", "tokens").left == 100


def test_a_changed_limit_keeps_what_was_used_and_a_key_that_is_gone_is_passed_over() -> None:
    one = lender(requests_per_minute=10, tokens_per_day=5)
    ask(one, at(0), used=8)
    one.limit({"k": limits_of(key(requests_per_minute=5, max_in_flight=1))})
    assert ask(one, at(1), used=8, need=1).left == 0
    assert one.report({"a": {"k": {"tokens": LeaseRow(need=1)}, "other": {"requests": LeaseRow()}}}, at(1)) == {
        "a": {"k": {}}
    }
    one.limit({})
    assert one.report({"a": {"k": {"requests": LeaseRow(need=1)}}}, at(1)) == {"a": {}}


def test_a_new_lender_knows_of_the_last_minute_by_the_routers_word() -> None:
    old, new = lender(requests_per_minute=10, tokens_per_day=50), lender(requests_per_minute=10, tokens_per_day=50)
    ask(old, at(0), used=6)
    ask(old, at(0), unit="tokens", used=9)
    assert old.recent(["k", "gone"], at(10)) == {"k": {"requests": 6}}
    new.add_recent({**old.recent(["k"], at(10)), "gone": {"requests": 5}}, at(10))
    rows = {"a": {"k": {"requests": LeaseRow(used=6, told=5), "tokens": LeaseRow(used=9, told=4)}}}
    grants = new.report(rows, at(10), is_new=True)["a"]["k"]
    assert (grants["requests"].left, grants["tokens"].left) == (4, 45)


def test_a_share_is_never_nothing_and_a_part_of_what_is_left_is_kept() -> None:
    assert limits_of(key(requests_per_minute=3, max_in_flight=0.5), 4) == {
        "requests": {"minute": 1},
        "in_flight": {"at_once": 1},
    }
    one = lender(requests_per_minute=100)
    one.meters["k"]["requests"].leave(7, at(0))
    assert ask(one, at(1), need=50).granted == 7
    assert ask(one, at(61), used=7, need=100).granted == 93


@given(
    st.integers(1, 50),
    st.lists(
        st.tuples(
            st.integers(0, 3),  # who
            st.floats(0, 20),  # seconds later
            st.integers(0, 60),  # how much of what it holds is used
            st.booleans(),  # the rest is given back
            st.integers(0, 60),  # need
            st.integers(0, 60),  # want
            st.sampled_from(["heard", "lost", "dies"]),
        ),
        max_size=60,
    ),
)
def test_in_no_minute_more_is_used_than_the_limit(limit: int, steps: list[Any]) -> None:
    """Workers that use what they hold, lose answers and die: real use in every window of a minute is within the limit."""
    one, now = lender(requests_per_minute=limit), 0.0
    held, used = dict.fromkeys(range(4), 0), dict.fromkeys(range(4), 0)
    lives = dict.fromkeys(range(4), 0)
    uses: list[tuple[float, int]] = []
    for who, later, amount, gives_back, need, want, fate in steps:
        now += later
        spent = min(amount, held[who])
        held[who] -= spent
        used[who] += spent
        uses.append((now, spent))
        holder = f"{who}-{lives[who]}"
        if fate == "dies":
            one.forget(holder, at(now))
            held[who] = used[who] = 0
            lives[who] += 1
            continue
        if gives_back:
            held[who] = 0
        grant = ask(one, at(now), holder, held=held[who], used=used[who], need=need, want=need + want)
        if fate == "heard":
            held[who] += grant.granted
        recent = sum(count for moment, count in uses if moment > now - 59.9)
        assert recent + sum(held.values()) <= limit


@given(st.lists(st.tuples(st.floats(0, 90), st.integers(0, 9)), max_size=30))
def test_a_minute_forgets_what_it_counted_and_never_counts_below_nothing(uses: list[tuple[float, int]]) -> None:
    minute, now = Minute(10), 0.0
    seen: list[tuple[float, int]] = []
    for later, amount in uses:
        now += later
        minute.add(amount, at(now))
        seen.append((now, amount))
        counted = minute.used(at(now))
        assert sum(count for moment, count in seen if moment > now - 60) <= counted
        assert counted <= sum(count for moment, count in seen if moment > now - 61.01)
