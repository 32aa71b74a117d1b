"""Placement on real prefix caches: two vLLM replicas, conversations with shared beginnings, the engines' own counters."""

from pathlib import Path

import pytest

from bench.engines import replicas
from bench.engines.talk import Place, converse

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1800)]


def test_cost_finds_nearly_all_that_two_caches_can_hold(tmp_path: Path) -> None:
    """Each cache holds the ten prefixes and nothing else; half of them and their conversations is what one can keep."""
    place = Place(tmp_path)
    with replicas.running(2, place.sizes, place.cores, tmp_path) as engines:
        cost, rotation = (converse("shared", policy, 1, engines, place) for policy in ("cost", "round_robin"))
    assert (cost.faults, rotation.faults) == ([], [])
    assert sum(cost.shares) == len(cost.ttft_s) == 120
    assert min(cost.shares) > 30, "a cache that is warm must not get everything"
    assert cost.hit_share > 0.95 * cost.possible, str(cost)
    assert cost.hit_share > rotation.hit_share + 0.05, f"{cost}\n{rotation}"
    assert cost.moved < rotation.moved / 4, f"{cost}\n{rotation}"
