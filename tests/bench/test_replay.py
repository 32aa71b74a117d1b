"""The replay's own arithmetic, and that the policies do on it what they are for."""

from pathlib import Path

import pytest

from bench.replay import offline, traces
from bench.replay.cases import CASES
from bench.replay.figures import Figures, bars_svg, lines_svg, medians, quantile, table
from bench.replay.model_engine import Kind, ModelEngine
from bench.replay.offline import POLICIES, Setup, facts_of, replay
from bench.replay.several import Routers
from bench.replay.traces import Request


def request(at_s: float, *blocks: int, tokens: int | None = None) -> Request:
    return Request(at_s, tokens or 512 * len(blocks), 10, blocks)


def test_an_engine_reads_one_prompt_after_the_other_and_skips_what_it_holds() -> None:
    engine = ModelEngine(Kind(cache_blocks=3, tokens_per_s=512.0, token_s=0.1))
    first = engine.serve(request(0.0, 1, 2), 0.0)
    assert (first.first_s, first.end_s, first.hit_blocks) == (2.0, 3.0, 0)
    second = engine.serve(request(1.0, 1, 3), 1.0)
    assert (second.first_s, second.hit_blocks, second.uncached_tokens) == (3.0, 1, 512)
    assert engine.serve(request(9.0, 2), 9.0).hit_blocks == 1
    engine.serve(request(10.0, 4, 5), 10.0)
    assert engine.serve(request(20.0, 1), 20.0).hit_blocks == 0


def test_prompts_are_equal_exactly_as_far_as_their_blocks_are() -> None:
    one, other = (traces.prompt(request(0, *ids), 2.0) for ids in ((1, 2, 3), (1, 2, 4)))
    assert one[:2048] == other[:2048]
    assert one[2048:] != other[2048:]
    assert len(traces.prompt(request(0, 1, 2, tokens=700), 2.0)) == 1400


def test_the_trace_is_read_in_order_and_cut(tmp_path: Path) -> None:
    line = '{"timestamp": %d, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}\n'
    (tmp_path / "trace.jsonl").write_text("".join(line % at for at in (5000, 1000, 9000)))
    assert [one.at_s for one in traces.load(tmp_path / "trace.jsonl", until_s=6.0)] == [1.0, 5.0]


def test_the_most_possible_and_the_floor_know_one_endless_cache() -> None:
    trace = [request(0.0, 1, 2), request(1.0, 1, 3), request(2.0, 1, 2)]
    assert traces.best_possible(trace) == pytest.approx(3 / 6)
    assert offline.floor(trace, 512.0) == pytest.approx((2 + 1 + 1 / 512) / 3)
    assert traces.best_possible(traces.shuffled(trace, 1)) == 0.0


@pytest.mark.parametrize("name", ["agents", "documents"])
def test_cost_beats_what_knows_no_prefixes_where_there_are_some(name: str) -> None:
    case = CASES[name]
    requests = case.requests([request(400.0, 1)], seed=1)
    facts = [facts_of(one, 2.0) for one in requests]
    means = {
        policy: replay(requests, facts, case.setup, POLICIES[policy]).mean_s
        for policy in ("round_robin", "least_loaded", "cost")
    }
    assert means["cost"] < 0.6 * min(means["least_loaded"], means["round_robin"])


def test_cost_is_no_worse_than_least_loaded_where_nothing_is_shared() -> None:
    requests = traces.shuffled(CASES["documents"].requests([request(400.0, 1)], seed=2), 2)
    requests = traces.at_load(requests, 0.5)
    facts = [facts_of(one, 2.0) for one in requests]
    cost, load = (replay(requests, facts, Setup(), POLICIES[name]).mean_s for name in ("cost", "least_loaded"))
    assert cost <= 1.03 * load


def test_routers_that_tell_each_other_do_nearly_as_one_and_lost_shares_cost_little() -> None:
    case = CASES["agents"]
    requests = case.requests([request(200.0, 1)], seed=1)
    facts = [facts_of(one, 2.0) for one in requests]
    setup = Setup(speed=1.0)
    one, told, lossy, apart = (
        replay(requests, facts, setup, POLICIES["cost"], routers=routers)
        for routers in (Routers(1), Routers(4), Routers(4, loss=0.2), Routers(4, tell_s=0.0))
    )
    assert told.mean_s < 1.1 * one.mean_s < 0.5 * apart.mean_s
    assert lossy.mean_s < 1.5 * one.mean_s
    assert 0 < told.told_bytes_s < 1000
    assert one.told_bytes_s == apart.told_bytes_s == 0


def test_one_of_several_routers_decides_as_one_alone() -> None:
    requests = CASES["documents"].requests([request(100.0, 1)], seed=1)
    facts = [facts_of(one, 2.0) for one in requests]
    alone, first = (replay(requests, facts, Setup(), POLICIES["cost"], routers=one) for one in (None, Routers(1)))
    assert alone.ttft_s == first.ttft_s


def test_spread_arrivals_stay_in_order_and_within_their_time() -> None:
    trace = [request(at, block) for block, at in enumerate((0.0, 0.0, 3.0))]
    spread = traces.spread(trace, 3.0, 1)
    assert [one.at_s for one in spread] == sorted(one.at_s for one in spread)
    assert all(trace[one.blocks[0]].at_s <= one.at_s <= trace[one.blocks[0]].at_s + 3.0 for one in spread)
    assert len({one.at_s for one in spread}) == 3


def test_a_replica_that_joins_late_gets_nothing_before() -> None:
    requests = [request(float(at), at) for at in range(20)]
    facts = [facts_of(one, 2.0) for one in requests]
    setup = Setup(kinds=(Kind(),) * 2, joins_at_s=(100.0, 0.0))
    assert replay(requests, facts, setup, POLICIES["round_robin"]).read_tokens[0] == 0


def figures(policy: str, mean_s: float, seed: int = 1) -> Figures:
    return Figures("base", policy, seed, mean_s, 1.0, 2.0, 3.0, 0.25, 1.1, 1.0, 0.5)


def test_medians_are_over_seeds_and_the_table_compares_with_the_baseline() -> None:
    found = [figures("prefix", 2.0), *(figures("cost", mean, seed) for seed, mean in enumerate((1.0, 9.0, 1.2)))]
    middle = medians(found)
    assert [(one.policy, one.mean_s) for one in middle] == [("prefix", 2.0), ("cost", 1.2)]
    assert "| base | cost | 1.20 | 1.00 | 2.00 | 3.00 | 0.20 | 25.0% | 50% | 1.10 | 0.0% | 0.60 | - | 0 |" in table(
        middle, "prefix"
    )


def test_plots_are_drawn_for_every_policy() -> None:
    drawn = bars_svg([figures("a<b", 2.0), figures("cost", 1.2)], "title")
    assert "a&lt;b" in drawn
    assert "0.20 s" in drawn
    assert lines_svg({"cost": [0.1, 0.2, 3.0]}, "title").count("polyline") == 1
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
