"""Aliases, splits, wildcards, fallbacks, slow start, and which policy whose request gets."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from router.model import Endpoint, Facts, Table
from router.policy.choose import Chooser
from router.policy.decision import RoutingDecision
from router.policy.models import MEMORY, ModelRule, ModelRules, faults
from router.policy.slow_start import SlowStart
from router.policy.usage import usage_of
from tests.router.test_policy import endpoint

RNG = random.Random(3)


def chooser(rules: ModelRules | None = None, **more: float | bool) -> Chooser:
    return Chooser(rng=random.Random(1), in_flight=lambda _endpoint: 0, rules=rules, **more)  # type: ignore[arg-type]  # the test names real arguments


def table(*endpoints: Endpoint) -> Table:
    return Table.of(1, tuple(replace(one, models=one.models or ("m",)) for one in endpoints))


def test_a_split_divides_by_weight_among_the_ready() -> None:
    rules = ModelRules(rules={"fast": ModelRule(split={"a": 9, "b": 1, "gone": 5})})
    count = Counter(rules.resolve("fast", None, lambda name: name != "gone", RNG) for _ in range(2000))
    assert 1700 < count["a"] < 1900
    assert count["a"] + count["b"] == 2000


def test_a_key_stays_with_its_part_of_a_split() -> None:
    rules = ModelRules(rules={"fast": ModelRule(split={"a": 1, "b": 1})})
    parts = {key: {rules.resolve("fast", key, bool, RNG) for _ in range(5)} for key in ("k1", "k2", "k3", "k4", "k5")}
    assert all(len(part) == 1 for part in parts.values())
    assert len(set.union(*parts.values())) == 2


def test_fallbacks_stand_in_only_while_nobody_is_ready() -> None:
    rules = ModelRules(rules={"a": ModelRule(fallbacks=("b", "c")), "alias": ModelRule(split={"a": 1})})
    assert rules.resolve("a", None, {"a", "b"}.__contains__, RNG) == "a"
    assert rules.resolve("a", None, {"c"}.__contains__, RNG) == "c"
    assert rules.resolve("alias", None, {"c"}.__contains__, RNG) == "c"
    assert rules.resolve("a", None, set().__contains__, RNG) == "a"
    assert rules.resolve("alias", None, set().__contains__, RNG) == "a"


def test_a_canary_splits_a_name_that_is_a_model_itself() -> None:
    rules = ModelRules(rules={"a": ModelRule(split={"a": 9, "a-next": 1})})
    count = Counter(rules.resolve("a", None, bool, RNG) for _ in range(1000))
    assert 50 < count["a-next"] < 160
    assert rules.resolve("a", None, {"a"}.__contains__, RNG) == "a"


def test_the_exact_name_wins_then_the_longest_pattern() -> None:
    rules = ModelRules(
        "cost",
        {
            "gpt-*": ModelRule(split={"a": 1}),
            "gpt-4*": ModelRule(split={"b": 1}),
            "gpt-4": ModelRule(policy="session"),
        },
    )
    resolved = [rules.resolve(name, None, bool, RNG) for name in ("gpt-3", "gpt-4o", "gpt-4", "other")]
    assert resolved == ["a", "b", "gpt-4", "other"]
    assert [rules.policy_of(name) for name in ("gpt-4", "gpt-3", None)] == ["session", "cost", "cost"]


def test_names_that_clients_invent_are_not_remembered_for_ever() -> None:
    rules = ModelRules(rules={"a*": ModelRule()})
    for number in range(2 * MEMORY):
        rules.find(f"x{number}")
    assert len(rules._found) <= MEMORY


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        (ModelRule(policy="best"), "policy"),
        (ModelRule(split={"a": -1}), "weights"),
        (ModelRule(split={"a": 0}), "weights"),
        (ModelRule(fallbacks=("b*",)), "pattern"),
    ],
)
def test_rules_that_cannot_be_followed_are_named(rule: ModelRule, fault: str) -> None:
    [line] = faults({"m": rule})
    assert fault in line
    assert faults({"m": ModelRule(policy="cost", split={"a": 0.5}, fallbacks=("b",))}) == []


def test_a_newcomer_gets_little_at_first_and_its_share_in_the_end() -> None:
    slow = SlowStart(30.0)
    old, new = (replace(endpoint(name), models=("m",)) for name in "ab")
    slow.note([old], 0.0)
    assert not slow.active
    slow.note([old, new], 100.0)
    assert [one.weight for one in slow.weigh([old, new], 100.0)] == [1.0, pytest.approx(0.1)]
    assert [one.weight for one in slow.weigh([old, new], 115.0)] == [1.0, pytest.approx(0.55)]
    assert list(slow.weigh([old, new], 130.0)) == [old, new]
    assert not slow.active


def test_a_newcomer_may_say_how_long_its_start_takes() -> None:
    slow = SlowStart(30.0)
    old, new = (replace(endpoint(name), models=("m",)) for name in "ab")
    longer, at_once = replace(new, slow_start_s=100.0), replace(new, id="c@1", slow_start_s=0.0)
    slow.note([old], 0.0)
    slow.note([old, longer, at_once], 100.0)
    assert [one.weight for one in slow.weigh([longer, at_once], 150.0)] == [pytest.approx(0.55), 1.0]
    assert list(slow.weigh([longer, at_once], 200.0)) == [longer, at_once]
    off = SlowStart(0.0)
    off.note([old], 0.0)
    off.note([old, new, longer], 99.0)  # none known for as long
    assert not off.active
    off.note([old, new, replace(longer, id="b@2")], 100.0)
    assert [one.weight for one in off.weigh([new, replace(longer, id="b@2")], 100.0)] == [1.0, pytest.approx(0.1)]


def test_a_fleet_that_starts_together_starts_at_full_weight() -> None:
    slow = SlowStart(30.0)
    a, b, other = (replace(endpoint(name), models=("m",)) for name in "abc")
    slow.note([], 0.0)
    slow.note([a], 50.0)
    slow.note([a, b], 60.0)
    assert slow.active is False
    slow.note([a, b, replace(other, models=("x",))], 200.0)
    assert slow.active is False
    slow.note([a, replace(b, id="b@2")], 300.0)
    assert slow.active


def test_each_model_has_its_policy_and_placements_are_told_only_where_they_matter() -> None:
    rules = ModelRules("round_robin", {"m": ModelRule(policy="cost")})
    made = chooser(rules)
    pool = [endpoint("a", models=("m", "n")), endpoint("b", models=("m", "n")), endpoint("c", models=("single",))]
    made.set_table(table(*pool), 0.0)
    assert (made.policy("m").name, made.policy("n").name, made.policy(None).name) == (
        "cost",
        "round_robin",
        "round_robin",
    )
    assert made.policy("m") is made.policy("m")
    assert (made.reads_prompt("m", None), made.reads_prompt("n", None), made.reads_prompt("single", None)) == (
        True,
        False,
        False,
    )
    assert made.placed(RoutingDecision(pool[0]), Facts(model="m"), 0.0) is not None
    assert made.placed(RoutingDecision(pool[0]), Facts(model="n"), 0.0) is None
    assert made.placed(RoutingDecision(pool[2]), Facts(model="single"), 0.0) is None


def test_a_round_robin_fleet_is_told_nothing_at_all() -> None:
    made = chooser(ModelRules("round_robin"))
    made.set_table(table(endpoint("a"), endpoint("b")), 0.0)
    assert not made.reads_any_prompt()
    assert not made._tracking
    assert made.placed(RoutingDecision(endpoint("a")), Facts(model="m"), 0.0) is None


def test_a_weight_of_zero_gets_nothing_while_another_has_some() -> None:
    made = chooser()
    a, b = endpoint("a", 0), endpoint("b", 1)
    made.set_table(table(a, b), 0.0)
    assert {made.pick([a, b], Facts(model="m"), 0.0).endpoint.name for _ in range(5)} == {"b"}
    assert made.pick([a], Facts(model="m"), 0.0).endpoint == a


def test_idle_and_short_the_default_is_weighted_round_robin() -> None:
    """The contract's order with the default policy: exactly 5, 1, 1."""
    made = chooser()
    pool = [endpoint("a", 5), endpoint("b", 1), endpoint("c", 1)]
    made.set_table(table(*pool), 0.0)
    facts = Facts(model="m", stream=True, prompt_bytes=60)
    names = ""
    for number in range(14):
        picked = made.pick(pool, facts, number * 0.1)
        names += picked.endpoint.name
        placement = made.placed(picked, facts, number * 0.1)
        assert placement is not None
        placement.first_byte(number * 0.1 + 0.01)
        placement.over(number * 0.1 + 0.02)
    assert names == "aabacaa" * 2


def test_keys_stick_whatever_the_policy_unless_told_otherwise() -> None:
    pool = [endpoint(name) for name in "abcd"]
    keyed = Facts(model="m", affinity="key:k")
    for sticky, kinds in ((True, 1), (False, 4)):
        made = chooser(sticky_keys=sticky)
        made.set_table(table(*pool), 0.0)
        assert len({made.pick(pool, keyed, 0.0).endpoint.name for _ in range(12)}) == kinds


def test_explain_tells_rule_inputs_and_pick_and_changes_nothing() -> None:
    made = chooser()
    pool = [endpoint("a"), endpoint("b")]
    made.set_table(table(*pool), 0.0)
    for _ in range(3):
        rule, scores, picked = made.explain(pool, Facts(model="m", prompt_bytes=10), 0.0)
        assert (rule, picked) == ("cost", made.policy("m").peek(pool, Facts(model="m", prompt_bytes=10), 0.0))
    assert set(scores["a@1"]) >= {"score", "backlog_s", "prefill_s", "cached_bytes", "cache_bytes"}
    assert picked == made.pick(pool, Facts(model="m", prompt_bytes=10), 0.0).endpoint


@pytest.mark.parametrize(
    ("tail", "share"),
    [
        (b'{"usage":{"prompt_tokens":100,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":64}}}', 0.64),
        (b'data: {"usage": {"input_tokens": 50, "input_tokens_details": {"cached_tokens": 0}}}', 0.0),
        (b'{"usage":{"prompt_tokens":100,"prompt_tokens_details":null}}', None),
        (b'{"usage":{"prompt_tokens":0,"cached_tokens":0}}', None),
        (b'{"usage":{"prompt_tokens":10,"cached_tokens":99}}', 1.0),
        (b'{"usage":{"input_tokens":36,"cache_read_input_tokens":64,"output_tokens":5}}', 0.64),
        (
            b'{"usage":{"input_tokens":10,"cache_creation_input_tokens":30,"cache_read_input_tokens":60,"output_tokens":5}}',
            0.6,
        ),
        (b'{"usage":{"cache_read_input_tokens":64,"input_tokens":0,"output_tokens":0}}', 1.0),
        (b'{"usage":{"input_tokens":10,"cache_creation_input_tokens":null,"cache_read_input_tokens":null}}', None),
        (
            b'{"usage":{"prompt_tokens":100,"cache_read_input_tokens":64,"prompt_tokens_details":{"cached_tokens":64}}}',
            0.64,
        ),
        (b"", None),
    ],
)
def test_usage_tells_the_cached_share_as_its_api_counts_W46(tail: bytes, share: float | None) -> None:
    usage = usage_of(tail)
    assert (usage and usage.cached_share()) == share


def test_a_queue_that_others_filled_counts_for_a_while() -> None:
    made = chooser()
    a, b = endpoint("a", waiting=9, slot=1), endpoint("b", waiting=0, slot=2)
    long = Facts(model="m", stream=True, prompt_bytes=9000, blocks=(1, 2, 3))
    made.set_table(table(a, b), 0.0)
    for one in (a, b):
        placement = made.fleet.view(one).place(long, 1.0)
        placement.first_byte(2.0)
        placement.over(2.0)
    made.set_table(table(a, b), 3.0)
    assert {made.pick([a, b], replace_blocks(long, number), 4.0).endpoint.name for number in range(6)} == {"b"}
    assert {made.pick([a, b], replace_blocks(long, number), 60.0).endpoint.name for number in range(6)} == {"a", "b"}
    busy = Chooser(rng=RNG, in_flight=lambda _endpoint: 9)
    busy.set_table(table(a, b), 3.0)
    assert busy.fleet.view(a).backlog_s(4.0) == 0.0


def test_a_report_counts_when_it_comes_and_not_once_more_with_what_another_replica_tells() -> None:
    ours = 5
    made = Chooser(rng=RNG, in_flight=lambda _endpoint: ours)
    a, b = endpoint("a", waiting=5, slot=1, models=("m",)), endpoint("b", waiting=0, slot=2, models=("m",))
    made.set_table(Table.of(1, (a, b)), 0.0)
    placement = made.fleet.view(b).place(Facts(model="m", stream=True, prompt_bytes=9000, blocks=(1, 2, 3)), 1.0)
    placement.first_byte(2.0)
    placement.over(2.0)
    ours = 0  # those that waited were ours, and are done
    made.set_table(Table.of(2, (a, replace(b, weight=2.0))), 3.0)
    assert made.fleet.view(a).backlog_s(3.0) == 0.0
    made.set_table(Table.of(3, (replace(a), b)), 3.0)
    assert made.fleet.view(a).backlog_s(3.0) > 0.0, "reported now, when we have none there"


def replace_blocks(facts: Facts, number: int) -> Facts:
    return Facts(model=facts.model, stream=True, prompt_bytes=facts.prompt_bytes, blocks=(100 + number,))
