"""What the router's policies are compared with does what it is said to do."""

import random
from collections import Counter

import pytest

from bench.replay.policies import LeastRequests, Prefix, RandomChoice, TwoChoices
from router.policy.fleet_view import FleetView
from tests.router.test_policy import endpoint
from tests.router.test_policy_rules import facts, nobody, text


def test_prefix_leaves_the_match_when_loads_are_far_apart() -> None:
    fleet = FleetView()
    in_flight: Counter[str] = Counter()
    policy = Prefix(random.Random(1), fleet, lambda one: in_flight[one.id])
    a, b = endpoint("a"), endpoint("b")
    fleet.view(a).place(facts(text(1, 2)), 0.0)
    in_flight[a.id] = 64
    assert policy.pick([a, b], facts(text(1, 3)), 0.0).endpoint == a
    in_flight[a.id] = 65
    assert policy.pick([a, b], facts(text(1, 3)), 0.0).endpoint == b
    in_flight[a.id] = 1
    assert policy.pick([a, b], facts(text(9, 1)), 0.0).endpoint == b


def test_chance_shares_by_weight() -> None:
    policy = RandomChoice(random.Random(1))
    pool = [endpoint("a", 3), endpoint("b", 1), endpoint("c", 0)]
    share = Counter(policy.pick(pool, facts(), 0.0).endpoint.name for _ in range(400))
    assert share["c"] == 0
    assert 260 < share["a"] < 340
    assert {policy.pick(pool[2:], facts(), 0.0).endpoint.name for _ in range(3)} == {"c"}


def test_of_two_drawn_by_chance_the_less_loaded_gets_it() -> None:
    fleet = FleetView()
    policy = TwoChoices(random.Random(1), fleet, nobody)
    pool = [endpoint(name) for name in "abc"]
    fleet.view(pool[0]).place(facts(text(1)), 0.0)
    share = Counter(policy.pick(pool, facts(), 0.0).endpoint.name for _ in range(300))
    assert share["a"] == 0
    assert min(share["b"], share["c"]) > 100
    assert policy.pick(pool[:1], facts(), 0.0).endpoint == pool[0]


@pytest.mark.parametrize("busy", ["a", "b"])
def test_the_fewest_requests_win(busy: str) -> None:
    policy = LeastRequests(random.Random(1), lambda one: int(one.name == busy))
    pool = [endpoint(name) for name in "ab"]
    assert {policy.pick(pool, facts(), 0.0).endpoint.name for _ in range(5)} == {"a", "b"} - {busy}
