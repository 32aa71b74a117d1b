"""The prefix index against a cache that does what it estimates, and the hashing it rests on."""

import random
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.policy.blocks import ENDS, bytes_of, chain, seed_of
from router.policy.cache_size import Sizes, learned_bytes
from router.policy.prefix_index import PrefixIndex

SIZES = tuple(end - start for start, end in zip((0, *ENDS), ENDS, strict=False))
"""Bytes of each block."""

KB = 1024


def index(capacity_bytes: float, *, limit_bytes: float = 1e9, limit_blocks: int = 10**6) -> PrefixIndex:
    return PrefixIndex(capacity_bytes, limit_bytes=limit_bytes, limit_blocks=limit_blocks)


def prompt(*parts: int, part_bytes: int = 4 * KB) -> tuple[int, ...]:
    return chain(b"".join(part.to_bytes(8) * (part_bytes // 8) for part in parts), 0)


def test_blocks_end_where_they_must_and_grow_with_their_distance() -> None:
    assert ENDS[:3] == (512, 1024, 1536)
    assert all(size <= max(512, end / 16) for size, end in zip(SIZES, ENDS, strict=True))
    assert sum(SIZES) == ENDS[-1]
    assert sum(end <= 48 * KB for end in ENDS) < 64
    assert sum(end <= KB * KB for end in ENDS) < 160


@given(st.binary(max_size=20_000), st.binary(max_size=20_000), st.binary(max_size=20_000))
def test_equal_beginnings_have_equal_blocks_and_only_those(head: bytes, one: bytes, other: bytes) -> None:
    first, second = chain(head + one, 7), chain(head + other, 7)
    common = 0
    while common < min(len(first), len(second)) and first[common] == second[common]:
        common += 1
    equal = 0
    for a, b in zip(head + one, head + other, strict=False):
        if a != b:
            break
        equal += 1
    assert common == sum(end <= equal for end in ENDS)
    assert not set(first[common:]) & set(second[common:])


def test_a_short_prompt_has_no_blocks_and_the_seed_tells_models_apart() -> None:
    assert chain(b"x" * 511, 0) == ()
    assert chain(b"x" * 512, seed_of(b"a")) != chain(b"x" * 512, seed_of(b"b"))
    assert seed_of(b"a", b"b") != seed_of(b"b", b"a")
    assert chain(memoryview(b"x" * 600), 1) == chain(b"x" * 600, 1)


def test_what_was_used_is_held_up_to_where_it_differs() -> None:
    known = index(1e6)
    known.use(prompt(1, 2, 3))
    assert bytes_of(known.held(prompt(1, 2, 3, 4))) == 12 * KB
    assert bytes_of(known.held(prompt(1, 2, 9))) == 8 * KB
    assert known.held(prompt(9)) == known.held(()) == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(40, 400))
def test_held_is_what_a_cache_of_that_size_would_hold(seed: int, capacity_kb: int) -> None:
    """Within a generation's coarseness: what the cache surely holds is held, what it surely lost is not."""
    rng = random.Random(seed)
    known = index(capacity_kb * KB)
    recent: OrderedDict[int, int] = OrderedDict()
    for _ in range(300):
        blocks = prompt(*[rng.randrange(4) for _ in range(rng.randrange(4))], rng.randrange(30))
        if rng.random() < 0.5:
            held = known.held(blocks)
            for count in range(1, len(blocks) + 1):
                age = 0
                for block, size in reversed(recent.items()):
                    age += size
                    if block == blocks[count - 1]:
                        break
                else:
                    assert count > held
                    break
                if age < 0.8 * capacity_kb * KB - 32 * KB:
                    assert count <= held
                elif age > 1.1 * capacity_kb * KB + 32 * KB:
                    assert count > held
        known.use(blocks)
        for block, size in zip(blocks, SIZES, strict=False):
            recent[block] = size
            recent.move_to_end(block)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(20, 2000))
def test_memory_stays_within_its_limit_whatever_is_asked(seed: int, limit_blocks: int) -> None:
    rng = random.Random(seed)
    known = index(1e9, limit_blocks=limit_blocks)
    for _ in range(500):
        known.use(prompt(*[rng.randrange(3) for _ in range(rng.randrange(6))], rng.randrange(10**6)))
        newest = known._moved[known._generation]
        assert len(known) <= known._entries <= limit_blocks + len(newest)
        assert known._entries == sum(map(len, known._moved.values()))
        assert known._total_bytes == sum(known._live.values())
        held = sum(live for generation, live in known._live.items() if generation >= known._oldest)
        assert known._held_bytes == held


def test_a_prompt_repeated_for_ever_takes_no_more_memory() -> None:
    known = index(1e9)
    for _ in range(2000):
        known.use(prompt(1, 2, 3))
    assert known._entries < 200
    assert len(known._live) < 10


def test_a_capacity_found_smaller_hides_the_oldest_and_found_larger_brings_it_back() -> None:
    known = index(1e6)
    for number in range(100):
        known.use(prompt(number))
    known.resize(40 * KB)
    assert (known.held(prompt(0)), known.known(prompt(0))) == (0, 8)
    assert known.held(prompt(99)) == 8
    known.resize(1e6)
    assert known.held(prompt(0)) == 8


def test_ages_count_the_bytes_used_since() -> None:
    known = index(1e7)
    for number in range(200):
        known.use(prompt(number))
    (oldest,) = known.ages(prompt(0), [0])
    (newest,) = known.ages(prompt(199), [0])
    assert oldest == pytest.approx(200 * 4 * KB, rel=0.1)
    assert newest < 40 * KB


@pytest.mark.parametrize("true_bytes", [2e5, 3e6, 5e7])
def test_the_size_is_learned_from_hits_and_misses_by_age(true_bytes: float) -> None:
    rng = random.Random(4)
    own, fleet = Sizes(), Sizes()
    for _ in range(400):
        age = 2 ** rng.uniform(13, 28)
        own.note(age, float(age < true_bytes) if rng.random() < 0.95 else rng.random())
    assert 0.6 < learned_bytes(own, fleet, 1e9) / true_bytes < 1.7


def test_the_size_begins_at_the_limit_and_a_newcomer_takes_the_fleets() -> None:
    own, fleet = Sizes(), Sizes()
    assert learned_bytes(own, fleet, 256e6) == 256e6
    for age in (1e6, 2e6, 8e6, 9e6) * 20:
        fleet.note(age, float(age < 4e6))
    assert 2e6 < learned_bytes(own, fleet, 256e6) < 9e6


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), max_size=120),
    st.integers(8, 60),
    st.integers(512, 9000),
)
def test_hashes_that_were_made_to_collide_do_no_harm(chains: list[list[int]], limit_blocks: int, capacity: int) -> None:
    known = index(capacity, limit_blocks=limit_blocks)
    for blocks in chains:
        count = known.known(blocks)
        assert 0 <= known.held(blocks) <= len(blocks)
        if count:
            known.ages(blocks, [0, count - 1])
        known.use(blocks)
        known.resize(capacity * (1 + len(blocks) % 3))
    assert len(known) <= 13
