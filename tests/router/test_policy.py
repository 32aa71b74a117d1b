import random
from collections import Counter
from dataclasses import replace

import pytest

from router.candidates import choose_from
from router.model import Eligibility, Endpoint, Facts
from router.outlier import AttemptVerdict, Outliers, Reason
from router.policy import affinity, cache_type
from router.policy.choose import Chooser
from router.policy.round_robin import CREDIT_LIMIT, RoundRobin
from router.retry import RetryBudget


def endpoint(name: str, weight: float = 1.0, **more: object) -> Endpoint:
    plain = Endpoint(id=f"{name}@1", name=name, host="h", port=1, slot=0, weight=weight)
    return replace(plain, **more)  # type: ignore[arg-type]  # the test names real fields


def test_round_robin_spreads_by_weight_and_smoothly() -> None:
    pool = [endpoint("a", 5), endpoint("b", 1), endpoint("c", 1)]
    policy = RoundRobin()
    assert "".join(policy.next(pool).name for _ in range(14)) == "aabacaa" * 2


def test_round_robin_passes_over_weight_zero_unless_all_are() -> None:
    policy = RoundRobin()
    pool = [endpoint("a", 0), endpoint("b", 2)]
    assert {policy.next(pool).name for _ in range(5)} == {"b"}
    zeros = [endpoint("a", 0), endpoint("b", 0)]
    assert Counter(policy.next(zeros).name for _ in range(6)) == {"a": 3, "b": 3}


def test_round_robin_forgets_endpoints_that_are_gone() -> None:
    policy = RoundRobin()
    for number in range(CREDIT_LIMIT):
        policy.next([endpoint(f"x{number}"), endpoint("a")])
    assert len(policy._credit) <= CREDIT_LIMIT + 2


def test_a_key_stays_and_only_its_share_moves_when_an_endpoint_leaves() -> None:
    pool = [endpoint(name) for name in "abcd"]
    before = {key: affinity.pick(f"k{key}", pool).name for key in range(2000)}
    after = {key: affinity.pick(f"k{key}", pool[:-1]).name for key in range(2000)}
    assert all(after[key] == name for key, name in before.items() if name != "d")
    share = Counter(before.values())
    assert all(400 < share[name] < 600 for name in "abcd")


def test_a_key_follows_weights_and_survives_a_restart() -> None:
    pool = [endpoint("a", 3), endpoint("b", 1)]
    share = Counter(affinity.pick(f"k{key}", pool).name for key in range(2000))
    assert 1400 < share["a"] < 1600
    again = [replace(one, id=one.name + "@2") for one in pool]
    assert all(affinity.pick(f"k{key}", pool).name == affinity.pick(f"k{key}", again).name for key in range(50))


def test_cache_type_prefers_by_text_size_and_falls_back() -> None:
    static, paged, plain = endpoint("s", cache_type="static"), endpoint("p", cache_type="paged"), endpoint("x")
    pool = [static, paged, plain]
    assert cache_type.prefer(pool, 51200, 51200) == [paged]
    assert cache_type.prefer(pool, 51201, 51200) == [static]
    assert cache_type.prefer([paged, plain], 51201, 51200) == [paged, plain]
    assert cache_type.prefer(pool, None, 51200) == pool


def test_the_order_of_the_rules_is_cache_type_key_rotation() -> None:
    pool = [endpoint("s1", cache_type="static"), endpoint("s2", cache_type="static"), endpoint("p", cache_type="paged")]
    chooser = Chooser(rng=random.Random(1), in_flight=lambda _endpoint: 0, cache_type_threshold_bytes=10)
    long = [chooser.pick(pool, Facts(text_bytes=11), 0.0).endpoint.name for _ in range(4)]
    assert sorted(long) == ["s1", "s1", "s2", "s2"]
    assert len({chooser.pick(pool, Facts(text_bytes=11, affinity="key:a"), 0.0).endpoint.name for _ in range(9)}) == 1


def test_a_key_holds_only_while_its_replica_is_not_far_above_the_mean_W12() -> None:
    pool = [endpoint(name) for name in "abcd"]
    in_flight: Counter[str] = Counter()
    chooser = Chooser(rng=random.Random(1), in_flight=lambda one: in_flight[one.id])
    keyed = Facts(affinity="addr:10.0.0.1|app")
    owner = chooser.pick(pool, keyed, 0.0).endpoint
    in_flight[owner.id] = 1
    assert chooser.pick(pool, keyed, 0.0).endpoint == owner
    assert chooser.explain(pool, keyed, 0.0)[0] == "affinity"
    for one in pool:
        in_flight[one.id] = 40
    in_flight[owner.id] = 50  # a mean of 42.5: a quarter above it is more than two
    assert chooser.pick(pool, keyed, 0.0).endpoint == owner
    in_flight[owner.id] = 56
    spilled = [chooser.pick(pool, keyed, 0.0).endpoint.name for _ in range(8)]
    assert len(set(spilled)) > 1
    assert chooser.explain(pool, keyed, 0.0)[0] == "cost"


def test_the_bound_of_a_key_follows_weights_W12() -> None:
    heavy, light = endpoint("a", 3), endpoint("b", 1)
    in_flight = {heavy.id: 33, light.id: 8}
    chooser = Chooser(rng=random.Random(1), in_flight=lambda one: in_flight[one.id])
    keys = [Facts(affinity=f"key:{number}") for number in range(40)]
    owners = {affinity.pick(str(facts.affinity), [heavy, light]).name for facts in keys}
    assert owners == {"a", "b"}
    rules = {chooser.explain([heavy, light], facts, 0.0)[0] for facts in keys}
    assert rules == {"affinity"}  # three quarters of the load is the heavy one's own share


def test_candidates_fresh_before_suspect_before_panic_D6() -> None:
    fresh, suspect = endpoint("f"), endpoint("s", eligibility=Eligibility.SUSPECT)
    down, draining = endpoint("d", eligibility=Eligibility.DOWN), endpoint("g", eligibility=Eligibility.DRAINING)
    outliers = Outliers()
    pool = [fresh, suspect, down, draining]
    assert list(choose_from(pool, (), outliers, 0.0).endpoints) == [fresh]
    assert list(choose_from(pool, {fresh.id}, outliers, 0.0).endpoints) == [suspect]
    assert list(choose_from(pool, {fresh.id, suspect.id}, outliers, 0.0).endpoints) == []
    panic = choose_from([down, draining], (), outliers, 0.0)
    assert (list(panic.endpoints), panic.panic) == ([down], True)
    assert not choose_from([draining], (), outliers, 0.0).endpoints


def note(
    outliers: Outliers, one: Endpoint, verdict: AttemptVerdict, now: float, *, client: str = "c", peers: int = 4
) -> bool:
    pool = [one, *(endpoint(f"peer{number}") for number in range(peers - 1))]
    return outliers.note(one, verdict, client, pool, now)


def test_refused_ejects_at_once_for_longer_each_time() -> None:
    outliers, one = Outliers(), endpoint("a")
    now = 0.0
    for turn in range(1, 16):
        assert note(outliers, one, AttemptVerdict.REFUSED, now)
        pause = min(5.0 * turn, 60.0)
        assert not outliers.admits(one, now + pause - 0.01)
        assert outliers.admits(one, now + pause)
        now += pause


def test_five_faults_in_a_row_eject_and_one_good_answer_forgives() -> None:
    outliers, one = Outliers(), endpoint("a")
    assert [note(outliers, one, AttemptVerdict.FAULT, 0.0) for _ in range(4)] == [False] * 4
    note(outliers, one, AttemptVerdict.GOOD, 0.0)
    assert [note(outliers, one, AttemptVerdict.FAULT, 0.0) for _ in range(5)] == [False] * 4 + [True]


def test_half_open_lets_one_request_try() -> None:
    outliers, one = Outliers(), endpoint("a")
    note(outliers, one, AttemptVerdict.REFUSED, 0.0)
    assert outliers.admits(one, 5.0)
    outliers.begin(one)
    assert not outliers.admits(one, 5.0)
    note(outliers, one, AttemptVerdict.NEUTRAL, 5.0)  # the trial's client left: the next may try
    assert outliers.admits(one, 5.0)
    outliers.begin(one)
    note(outliers, one, AttemptVerdict.GOOD, 5.0)
    assert outliers.admits(one, 5.0)
    outliers.begin(one)
    assert outliers.admits(one, 5.0)


def test_neutral_never_counts_and_errors_of_one_client_do_not_eject_A19() -> None:
    outliers, one = Outliers(), endpoint("a")
    assert not any(note(outliers, one, AttemptVerdict.NEUTRAL, 0.0) for _ in range(50))
    assert not any(note(outliers, one, AttemptVerdict.SERVER_ERROR, 0.0, client="poison") for _ in range(50))
    ejected = [note(outliers, one, AttemptVerdict.SERVER_ERROR, 0.0, client=f"c{number}") for number in range(6)]
    assert ejected.index(True) == 4


def test_broken_answers_of_one_client_do_not_eject_and_of_several_do_W8() -> None:
    outliers, one = Outliers(), endpoint("a")
    assert not any(note(outliers, one, AttemptVerdict.BROKEN, 0.0, client="poison") for _ in range(50))
    ejected = [note(outliers, one, AttemptVerdict.BROKEN, 0.0, client=f"c{number}") for number in range(6)]
    assert ejected.index(True) == 4


@pytest.mark.parametrize("verdict", [AttemptVerdict.BROKEN, AttemptVerdict.SERVER_ERROR])
def test_a_trial_that_one_client_spoils_is_followed_by_the_next_W8(verdict: AttemptVerdict) -> None:
    outliers, one = Outliers(), endpoint("a")
    note(outliers, one, AttemptVerdict.REFUSED, 0.0)
    for _ in range(3):
        assert outliers.admits(one, 5.0)
        outliers.begin(one)
        assert not outliers.admits(one, 5.0)
        assert not note(outliers, one, verdict, 5.0, client="poison")
    outliers.begin(one)
    assert note(outliers, one, verdict, 5.0, client="another")


def test_what_another_endpoint_answered_was_not_the_requests_fault_W8() -> None:
    outliers, one = Outliers(), endpoint("a")
    assert not note(outliers, one, AttemptVerdict.BROKEN, 0.0)
    outliers.answered_elsewhere((one, endpoint("unknown")))
    assert [note(outliers, one, AttemptVerdict.BROKEN, 0.0) for _ in range(5)] == [False] * 4 + [True]


def test_clients_that_met_errors_are_not_remembered_without_end_W8() -> None:
    outliers, one, other = Outliers(), endpoint("a"), endpoint("b")
    assert outliers.note(other, AttemptVerdict.REFUSED, "c", (one, other), 0.0)
    for number in range(100):  # never ejected, since half are out: nothing else would clear them
        assert not outliers.note(one, AttemptVerdict.SERVER_ERROR, f"c{number}", (one, other), 0.0)
        outliers.answered_elsewhere((one,))
    assert len(outliers._records[one.id].clients) == 2
    assert outliers.suspects(one, "c0")
    assert outliers.suspects(one, "c99")


def test_not_more_than_half_are_ejected() -> None:
    outliers = Outliers()
    pool = [endpoint(name) for name in "abcde"]
    ejected = [outliers.note(one, AttemptVerdict.REFUSED, "c", pool, 0.0) for one in pool]
    assert ejected == [True, True, False, False, False]
    single = Outliers()
    assert single.note(pool[0], AttemptVerdict.REFUSED, "c", pool[:1], 0.0)


def test_a_silent_endpoint_is_set_aside_until_it_speaks_W45() -> None:
    told: list[tuple[float, Reason]] = []
    outliers = Outliers(lambda _endpoint, until, why: told.append((until, why)))
    pool = [endpoint(name) for name in "ab"]
    one = pool[0]
    assert outliers.set_aside(one, pool, 0.0)
    assert not outliers.admits(one, 4.9)
    assert not outliers.set_aside(one, pool, 4.9)  # it is
    assert outliers.admits(one, 5.0)
    assert not outliers.set_aside(one, pool, 5.0)  # somebody has to try
    outliers.begin(one)
    assert outliers.set_aside(one, pool, 5.0)  # who tried waits too
    assert not outliers.admits(one, 14.9)
    outliers.take_back(one, 6.0)
    assert outliers.admits(one, 6.0)
    assert told == [(5.0, Reason.SILENT), (15.0, Reason.SILENT), (6.0, Reason.SILENT)]


def test_a_byte_does_not_end_an_ejection_for_another_reason_W45() -> None:
    outliers, one = Outliers(), endpoint("a")
    note(outliers, one, AttemptVerdict.REFUSED, 0.0)
    outliers.take_back(one, 1.0)
    outliers.taken_back(one, 1.0)
    assert not outliers.admits(one, 4.9)


def test_one_worker_takes_back_what_another_had_set_aside_W45() -> None:
    outliers, one = Outliers(), endpoint("a")
    outliers.adopt(one, 60.0, Reason.SILENT)
    assert not outliers.admits(one, 10.0)
    outliers.taken_back(one, 59.9995)  # the same moment, rounded
    assert not outliers.admits(one, 10.0)
    outliers.taken_back(one, 9.0)
    assert outliers.admits(one, 10.0)


def test_memory_of_gone_endpoints_is_dropped() -> None:
    outliers, one = Outliers(), endpoint("a")
    note(outliers, one, AttemptVerdict.REFUSED, 0.0)
    outliers.forget_all_but(set())
    assert outliers.ejected(0.0) == []


def retried(budget: RetryBudget, now: float) -> int:
    """How many retries it allows one after the other at `now`."""
    count = 0
    while budget.allows(now):
        budget.note_retry()
        count += 1
    return count


def test_retry_budget_is_a_fifth_of_ten_seconds_and_half_a_one_a_second_W23() -> None:
    budget = RetryBudget()
    assert retried(budget, 0.0) == 5
    for number in range(100):
        budget.note_request(number / 20)
    assert retried(budget, 5.0) == 20
    assert retried(budget, 9.9) == 0
    assert retried(budget, 10.0) == 5 - 4  # those of the first second are out, with a fifth of its twenty requests
    assert retried(budget, 1000.0) == 5


def test_retry_budget_holds_when_answers_are_instant_W23() -> None:
    """Every request is refused at once, so that there is never more than one in flight."""
    budget, retries = RetryBudget(), 0
    for number in range(1000):
        now = number / 100
        budget.note_request(now)
        for _ in range(2):
            if budget.allows(now):
                budget.note_retry()
                retries += 1
    assert 200 <= retries <= 205
