"""What routers tell each other: bounded, healed by what comes later, and refused whole where it is none."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy.peers import STALE_S, TELL_S, BadShare, Heard, Load, Teller, merged

A, B = 11, 1 << 63
BUSY = Load(2, 5000, 8000, 40, 300, 4000)
NOTHING = (0, 0, 0, 0.0, 0.0, 0)


def said(teller: Teller, now: float, load: Load = BUSY, blocks: tuple[int, ...] = ()) -> bytes:
    share = teller.share({A: load}, [(A, blocks)] if blocks else [], now)
    assert share is not None
    return share


def test_a_share_tells_loads_and_blocks() -> None:
    heard = Heard()
    router, placed = heard.take("one", said(Teller("me"), 7.0, blocks=(1, 2, (1 << 64) - 1)), 100.0)
    assert router == "me"
    assert [(tag, list(blocks)) for tag, blocks in placed] == [(A, [1, 2, (1 << 64) - 1])]
    assert merged(heard.of(A, 100.5), 100.5) == (2, 5000, 8000, 99.96, 99.7, 4000)
    assert merged(heard.of(B, 100.5), 100.5) == NOTHING


def test_loads_of_several_add_up_and_the_earliest_prompt_is_the_head() -> None:
    heard = Heard()
    heard.take("one", said(Teller("1"), 7.0), 100.0)
    heard.take("two", said(Teller("2"), 9.0, Load(1, 10, 20, 10, 900, 10)), 100.0)
    assert merged(heard.of(A, 100.0), 100.0) == (3, 5010, 8020, 99.99, 99.1, 10)


def test_a_router_that_is_silent_or_gone_counts_for_nothing() -> None:
    heard = Heard()
    heard.take("one", said(Teller("1"), 7.0), 100.0)
    assert merged(heard.of(A, 100.0 + STALE_S), 100.0 + STALE_S)[0] == 2
    assert merged(heard.of(A, 100.1 + STALE_S), 100.1 + STALE_S) == NOTHING
    assert heard.forget("one")
    assert not heard.forget("one")
    assert merged(heard.of(A, 100.0), 100.0) == NOTHING


@pytest.mark.parametrize("lost", [1, 2, 7, 19])
def test_what_was_lost_is_told_again_within_a_second(lost: int) -> None:
    teller, heard, now = Teller("1"), Heard(), 100.0
    for turn in range(lost + 21):
        share = teller.share({A: BUSY if turn < lost else Load()}, (), now)
        if share is not None and turn != lost:  # the word that it is idle again
            heard.take("one", share, now)
        now += TELL_S
    assert merged(heard.of(A, now), now) == NOTHING


def test_what_is_told_of_a_replica_is_bounded_whatever_happens_there() -> None:
    rng, teller = random.Random(1), Teller("01234567")
    told, seconds, tags = 0, 40, range(4)
    for turn in range(int(seconds / TELL_S)):
        loads = {
            tag: Load(rng.randrange(99), rng.randrange(1 << 40), rng.randrange(1 << 40), 1, 1, turn) for tag in tags
        }
        placed = [(tag, [rng.getrandbits(64) for _ in range(60)]) for tag in tags for _ in range(3)]
        share = teller.share(loads, placed, turn * TELL_S)
        if turn * TELL_S >= 10:  # at the beginning as much as in four seconds may be told at once
            told += len(share or b"")
    assert 500 < told / (seconds - 10) / len(tags) <= 1000


def test_an_idle_router_says_four_times_a_second_that_it_is_there() -> None:
    teller = Teller("0123456789abcdef")
    shares = [teller.share({A: Load(), B: Load()}, (), turn * TELL_S) for turn in range(20)]
    assert [share is not None for share in shares] == [not turn % 5 for turn in range(20)]
    assert sum(len(share or b"") for share in shares) < 100


@pytest.mark.parametrize(
    "share",
    [
        ["me", True, {A: [-1]}, []],
        ["me", True, {A: [1, 1 << 60]}, []],
        ["me", True, {A: [1, 1, 1, None, None, "x"]}, []],
        ["me", True, {-4: [1]}, []],
        ["me", True, {"x": [1]}, []],
        ["me", True, {}, [[A, b"1234567"]]],
        ["me" * 99, True, {}, []],
        ["me", True, {}],
        {"router": "me"},
        [[[[]]]],
        7,
    ],
    ids=str,
)
def test_a_share_that_is_none_is_refused_and_what_was_known_stays(share: object) -> None:
    heard = Heard()
    heard.take("one", said(Teller("1"), 7.0), 100.0)
    with pytest.raises(BadShare):
        heard.take("one", msgspec.msgpack.encode(share), 100.0)
    assert merged(heard.of(A, 100.0), 100.0)[0] == 2


@given(st.binary(max_size=80), st.integers(0, 60))
def test_any_bytes_are_a_share_or_refused(junk: bytes, cut: int) -> None:
    for payload in (junk, said(Teller("1"), 7.0)[:cut] + junk):
        heard = Heard()
        try:
            heard.take("one", payload, 100.0)
        except BadShare:
            continue
        assert all(value >= 0 for value in merged(heard.of(A, 100.0), 100.0))
