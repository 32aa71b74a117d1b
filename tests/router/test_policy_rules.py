"""The rules one by one, then what holds for all of them."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.model import Endpoint, Facts
from router.policy.blocks import chain
from router.policy.cost import Cost
from router.policy.fleet_view import FleetView
from router.policy.least_loaded import LeastLoaded
from router.policy.pace import FIRST_GUESS_S_PER_BYTE, FLEET_FADE, OWN_FADE, Pace, pooled
from router.policy.placed import PlacedRequest
from router.policy.round_robin import RoundRobin
from router.policy.rule import RoutingPolicy
from router.policy.session import StickySession
from tests.router.test_policy import endpoint

InFlight = Callable[[Endpoint], int]
RULES: dict[str, Callable[[FleetView, InFlight], RoutingPolicy]] = {
    "round_robin": lambda _fleet, _in_flight: RoundRobin(),
    "least_loaded": LeastLoaded,
    "session": lambda _fleet, in_flight: StickySession(in_flight, RoundRobin()),
    "cost": lambda fleet, _in_flight: Cost(fleet),
}


def facts(text: bytes = b"", *, stream: bool = True, session: str | None = None) -> Facts:
    return Facts(model="m", stream=stream, prompt_bytes=len(text), blocks=chain(text, 0), session=session)


def text(*parts: int, part_bytes: int = 8192) -> bytes:
    return b"".join(part.to_bytes(8) * (part_bytes // 8) for part in parts)


def nobody(_endpoint: Endpoint) -> int:
    return 0


def serve(fleet: FleetView, one: Endpoint, what: Facts, at: float, seconds: float) -> PlacedRequest:
    placement = fleet.view(one).place(what, at)
    placement.first_byte(at + seconds)
    placement.over(at + seconds)
    return placement


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(RULES)),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 0.5, 1.0, 7.0])), min_size=1, max_size=9),
    st.integers(0, 2**32),
)
def test_every_rule_picks_a_candidate_whatever_it_was_told(
    name: str, weights: list[tuple[int, float]], seed: int
) -> None:
    """Weights of 0, prompts old and new, answers that never come: always one of those offered, and never an error."""
    rng = random.Random(seed)
    in_flight: Counter[str] = Counter()
    fleet = FleetView()
    policy = RULES[name](fleet, lambda one: in_flight[one.id])
    pool = [endpoint(f"r{number}", weight) for number, (_, weight) in enumerate(weights)]
    under_way: list[PlacedRequest] = []
    now = 0.0
    for _ in range(40):
        now += rng.random()
        candidates = rng.sample(pool, rng.randint(1, len(pool)))
        what = facts(
            text(rng.randrange(3), rng.randrange(9), part_bytes=1024),
            stream=rng.random() < 0.7,
            session=rng.choice([None, "a", "b"]),
        )
        assert policy.scores(candidates, what, now).keys() == {one.id for one in candidates}
        assert policy.peek(candidates, what, now) in candidates
        picked = policy.pick(candidates, what, now).endpoint
        assert picked in candidates
        in_flight[picked.id] += 1
        under_way.append(fleet.view(picked).place(what, now))
        if rng.random() < 0.6:
            done = under_way.pop(rng.randrange(len(under_way)))
            if rng.random() < 0.8:
                done.first_byte(now)
            done.cached_share = rng.choice([None, 0.0, rng.random(), 1.0])
            done.over(now)
    for placement in under_way:
        placement.over(now)
    for one in pool:
        view = fleet.view(one)
        assert (view.requests, view.outstanding, view.work_bytes, len(view.reading)) == (0, 0, 0.0, 0)
        assert view.backlog_s(now) == 0.0


@pytest.mark.parametrize("name", ["least_loaded", "cost", "round_robin", "session"])
def test_an_idle_fleet_is_shared_by_weight(name: str) -> None:
    policy = RULES[name](FleetView(), nobody)
    pool = [endpoint("a", 3), endpoint("b", 1), endpoint("c", 0)]
    share = Counter(policy.pick(pool, facts(b"hello"), 0.0).endpoint.name for _ in range(400))
    assert share["c"] == 0
    assert 260 < share["a"] < 340


def test_cost_goes_where_the_prefix_is_until_waiting_there_is_longer() -> None:
    fleet = FleetView()
    policy = Cost(fleet)
    a, b = endpoint("a"), endpoint("b")
    serve(fleet, a, facts(text(1, 2, 3)), 0.0, 1.0)
    serve(fleet, b, facts(text(7, 8, 9)), 0.0, 1.0)
    asked = facts(text(1, 2, 4))
    assert policy.pick([a, b], asked, 2.0).endpoint == a
    fleet.view(a).place(facts(text(5, 5, 5, 5, 5, 5, 5, 5)), 2.0)
    assert policy.pick([a, b], asked, 2.0).endpoint == b


def test_cost_takes_the_emptiest_of_nearly_equal_ones() -> None:
    fleet = FleetView()
    policy = Cost(fleet)
    a, b = endpoint("a"), endpoint("b")
    for one in (a, b):
        serve(fleet, one, facts(text(1)), 0.0, 1.0)
    fleet.view(a).place(facts(b"x" * 400), 10.0)
    assert {policy.pick([a, b], facts(text(4)), 10.0).endpoint for _ in range(4)} == {b}


def test_cost_learns_that_a_replica_is_slow_and_tries_it_again_later() -> None:
    fleet = FleetView()
    policy = Cost(fleet)
    a, b = endpoint("a"), endpoint("b")
    for number in range(30):
        serve(fleet, a, facts(text(100 + number)), number * 10.0, 3.0)
        serve(fleet, b, facts(text(200 + number)), number * 10.0, 1.0)
    assert {policy.pick([a, b], facts(text(900 + n)), 301.0).endpoint for n in range(4)} == {b}
    later = [policy.pick([a, b], facts(text(950 + n)), 301.0 + 40 * n).endpoint for n in range(30)]
    assert a in later


def test_cost_gives_half_the_weight_half_the_backlog() -> None:
    fleet = FleetView()
    policy = Cost(fleet)
    a, b = endpoint("a", 2), endpoint("b", 1)
    count: Counter[str] = Counter()
    for number in range(300):
        picked = policy.pick([a, b], facts(text(number)), 0.0).endpoint
        fleet.view(picked).place(facts(text(number)), 0.0)
        count[picked.name] += 1
    assert count["a"] == pytest.approx(200, abs=12)


def test_utilisation_is_the_share_of_busy_replicas_that_arrivals_find() -> None:
    fleet = FleetView()
    policy = Cost(fleet)
    a, b = endpoint("a"), endpoint("b")
    fleet.view(a).place(facts(text(*range(50))), 0.0)
    for _ in range(200):
        policy.pick([a, b], facts(b"hi"), 0.0)
    assert policy.utilisation == pytest.approx(0.5, abs=0.02)


def test_a_replica_that_never_answers_gets_less_and_less() -> None:
    fleet = FleetView()
    a, b = endpoint("a"), endpoint("b")
    fleet.view(a).place(facts(text(1, 2)), 0.0)
    fleet.view(a).place(facts(text(3, 4)), 0.0)
    assert fleet.view(a).backlog_s(1000.0) > 0.0
    assert Cost(fleet).pick([a, b], facts(text(5)), 1000.0).endpoint == b


def test_a_replica_that_is_late_may_be_as_late_again_W45() -> None:
    fleet = FleetView()
    a, b = endpoint("a"), endpoint("b")
    serve(fleet, a, facts(text(1)), 0.0, 1.0)
    serve(fleet, b, facts(text(2)), 0.0, 1.0)
    asked = facts(text(1, 3))
    assert Cost(fleet).pick([a, b], asked, 2.0).endpoint == a  # it has half of the prompt
    late = fleet.view(a).place(facts(text(4)), 2.0)
    assert fleet.view(a).backlog_s(3.0) == pytest.approx(0.0, abs=0.2)
    assert fleet.view(a).backlog_s(9.0) > 3.0
    assert Cost(fleet).pick([a, b], asked, 9.0).endpoint == b
    late.first_byte(9.0)
    assert fleet.view(a).backlog_s(9.0) == 0.0


def test_nearly_equal_scores_go_to_the_fewest_under_way_W45() -> None:
    fleet = FleetView()
    policy = Cost(fleet)
    pool = [endpoint("a"), endpoint("b"), endpoint("heavy", 4)]

    def run(name: str) -> None:
        placement = fleet.view(next(one for one in pool if one.name == name)).place(facts(b"hi"), 0.0)
        placement.first_byte(0.0)  # read at once, and still written

    for name in ("a", "a", "b", *["heavy"] * 8):
        run(name)
    assert {policy.pick(pool, facts(b"hi"), 0.0).endpoint.name for _ in range(6)} == {"b"}
    for _ in range(2):
        run("b")
    assert {policy.pick(pool, facts(b"hi"), 0.0).endpoint.name for _ in range(12)} == {"a", "heavy"}


def test_an_answer_in_one_piece_should_be_read_after_the_expected_time() -> None:
    fleet = FleetView()
    one = endpoint("a")
    serve(fleet, one, facts(text(1)), 0.0, 1.0)
    placement = fleet.view(one).place(facts(text(2), stream=False), 10.0)
    assert fleet.view(one).backlog_s(10.5) == pytest.approx(0.5, rel=0.2)
    assert fleet.view(one).backlog_s(12.0) == 0.0
    placement.over(13.0)
    assert fleet.view(one).outstanding == 0


def test_an_answer_in_one_piece_is_not_read_until_its_bytes_come_W45() -> None:
    fleet = FleetView()
    one = endpoint("a")
    view = fleet.view(one)
    for number in range(20):
        answer = view.place(facts(text(number), stream=False), 10.0 * number)
        answer.answered = True
        answer.over(10.0 * number + 2.0)
    view.place(facts(text(100), stream=False), 1000.0)
    assert view.backlog_s(1002.0) == 0.0  # as long as the others took
    assert view.outstanding == len(text(100))
    assert view.backlog_s(1030.0) == pytest.approx(28.0, abs=2.0)
    view.place(facts(text(101)), 1030.0).first_byte(1031.0)  # a later prompt was read, so this one was too
    assert view.backlog_s(1031.0) == view.outstanding == 0


def test_service_counts_from_the_previous_first_token() -> None:
    fleet = FleetView()
    view = fleet.view(endpoint("a"))
    waiting = [view.place(facts(text(number)), 0.0) for number in range(5)]
    for number, placement in enumerate(waiting):
        placement.first_byte(number + 1.0)
        assert placement.service_s == pytest.approx(1.0)
    assert view.s_per_byte == pytest.approx(1 / 8192, rel=0.05)


@pytest.mark.parametrize(
    ("own_s", "others_s", "kept"),
    [
        ((1.9,), (1.1,), (0.0, 0.0)),
        ((1.9, 1.7), (1.1, 1.3), (0.0, 0.05)),
        ((0.2, 2.4, 0.4, 1.9, 1.3, 0.5, 1.8), (1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1), (0.0, 0.0)),
        ((3.0,) * 10, (1.0,) * 10, (0.75, 0.85)),
        ((3.0,) * 40, (1.0,) * 40, (0.9, 1.0)),
    ],
    ids=["one sample", "two that agree", "many that scatter", "ten that agree", "forty"],
)
def test_a_pace_differs_from_the_fleets_by_as_much_as_its_samples_are_evidence(
    own_s: tuple[float, ...], others_s: tuple[float, ...], kept: tuple[float, float]
) -> None:
    own, other, fleet = Pace(OWN_FADE), Pace(OWN_FADE), Pace(FLEET_FADE)
    for mine, theirs in zip(own_s, others_s, strict=True):
        for pace, seconds in ((own, mine), (other, theirs)):
            pace.note(seconds, 1000.0, 1.0)
            fleet.note(seconds, 1000.0, 1.0)
    difference = own.s_per_byte - fleet.s_per_byte
    share = (pooled(own, fleet) - fleet.s_per_byte) / difference
    assert kept[0] - 1e-9 <= share <= kept[1] + 1e-9
    own.halve()
    assert (pooled(own, fleet) - fleet.s_per_byte) / difference <= share


def test_a_replica_without_a_sample_has_its_fleets_pace() -> None:
    fleet = Pace(FLEET_FADE)
    assert pooled(Pace(OWN_FADE), fleet) == FIRST_GUESS_S_PER_BYTE
    fleet.note(1.0, 1000.0, 1.0)
    assert pooled(Pace(OWN_FADE), fleet) == pytest.approx(0.001, rel=0.01)


def test_reported_cached_tokens_teach_the_size() -> None:
    fleet = FleetView()
    view = fleet.view(endpoint("a"))
    now = 0.0
    recent: list[int] = []
    rng = random.Random(2)
    for _ in range(1500):
        now += 2.0
        part = rng.choice(recent) if recent and rng.random() < 0.5 else rng.randrange(10**9)
        cached = part in recent[-40:]
        recent = [*[one for one in recent if one != part], part][-200:]
        placement = view.place(facts(text(part)), now)
        placement.first_byte(now + 1.0)
        placement.cached_share = 1.0 if cached else 0.0
        placement.over(now + 1.0)
    assert 0.7 < view.index.capacity_bytes / (40 * 8192) < 1.5


def test_a_new_life_of_a_replica_begins_with_nothing_known_D27() -> None:
    fleet = FleetView()
    serve(fleet, endpoint("a"), facts(text(1)), 0.0, 1.0)
    again = endpoint("a", id="a@2")
    assert fleet.view(again).index.known(chain(text(1), 0)) == 0
    fleet.keep({again.id}, 1.0)
    assert list(fleet._views) == [again.id]


def test_memory_is_divided_among_all_replicas_also_where_one_more_changes_nothing() -> None:
    fleet = FleetView(blocks_limit=10_000)
    everyone = [endpoint(f"r{number}") for number in range(700)]
    for one in everyone:
        fleet.view(one)
    assert {view.index.limit_blocks for view in fleet._views.values()} == {10_000 // 700}
    fleet.keep([one.id for one in everyone[:650]], 1.0)
    assert {view.index.limit_blocks for view in fleet._views.values()} == {10_000 // 650}
    assert fleet._by_tag.keys() == {view._tag for view in fleet._views.values()}
    fleet.view(endpoint("late"))
    assert {view.index.limit_blocks for view in fleet._views.values()} == {10_000 // 651}


def test_session_sticks_within_bounds_and_spills_beyond() -> None:
    in_flight: Counter[str] = Counter()
    policy = StickySession(lambda one: in_flight[one.id], RoundRobin())
    pool = [endpoint(name) for name in "abcd"]
    owner = policy.pick(pool, facts(session="s"), 0.0).endpoint
    assert {policy.pick(pool, facts(session="s"), 0.0).endpoint for _ in range(9)} == {owner}
    in_flight[owner.id] = 9
    spilled = policy.pick(pool, facts(session="s"), 0.0).endpoint
    assert spilled != owner
    assert {policy.pick(pool, facts(session="s"), 0.0).endpoint for _ in range(9)} == {spilled}


def test_answers_in_one_piece_teach_pace_and_writing_by_their_length() -> None:
    fleet = FleetView()
    view = fleet.view(endpoint("a"))
    rng = random.Random(5)
    now = 0.0
    for number in range(40):
        size, tokens = rng.randrange(1, 40), rng.randrange(1, 400)
        placement = view.place(facts(text(number, part_bytes=1024 * size), stream=False), now)
        placement.written_tokens = tokens
        now += 1024 * size * 1e-5 + tokens * 0.02
        placement.over(now)
        now += 1.0
    assert fleet._shared.writing.s_per_token == pytest.approx(0.02, rel=0.01)
    assert view.s_per_byte == pytest.approx(1e-5, rel=0.05)


def test_the_end_of_a_non_streamed_answer_tells_that_those_before_it_are_read() -> None:
    fleet = FleetView()
    view = fleet.view(endpoint("a"))
    fleet._shared.writing.s_per_token = 0.02
    early, late = (view.place(facts(text(number, 9, 9), stream=False), 0.0) for number in range(2))
    late.written_tokens = 10
    late.over(0.5)
    assert (early.reading, len(view.reading)) == (False, 0)
    early.over(3.0)
    assert view.requests == 0


def test_the_first_sample_counts_for_everybody_at_once() -> None:
    fleet = FleetView()
    policy = Cost(fleet)
    a, b = endpoint("a"), endpoint("b")
    first = policy.pick([a, b], facts(text(1)), 0.0).endpoint
    serve(fleet, first, facts(text(1)), 0.0, 0.01)
    assert policy.pick([a, b], facts(text(2)), 0.05).endpoint != first


def test_prompts_too_small_to_measure_teach_no_pace() -> None:
    fleet = FleetView()
    serve(fleet, endpoint("a"), facts(b"hello"), 0.0, 5.0)
    assert fleet.view(endpoint("a")).pace.count == 0
