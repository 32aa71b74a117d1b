"""PURE: what an engine tells of its work in its Prometheus text, under one name for all engines.

The names are the engines' own: vLLM 0.6 to 0.32, SGLang 0.4 and 0.5, llama.cpp b4000 to b11549 with `--metrics`. What an
engine does not tell is None, never 0.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from common.exposition import Family, Sample, parse

COUNT_LIMIT = 2.0**53
"""Beyond it a number is no count: JSON's readers and Prometheus hold it no more exactly."""
RANKS = frozenset({"tp_rank", "pp_rank", "moe_ep_rank"})
"""Labels of processes that work on the same requests, and each tell of them: SGLang with metrics of all schedulers."""
WHOLES = frozenset({("cache_source", "total"), ("priority", "")})
"""Labels of SGLang's that mark a series as the sum of those beside it."""


class _Figure(NamedTuple):
    """Where a figure is found: the first of `names` of which all are there, added up.

    `limit` is the greatest value that can be true. Over labels it is added up, or, where it `is_share`, the greatest.
    """

    names: tuple[tuple[str, ...], ...]
    limit: float = COUNT_LIMIT
    is_share: bool = False


RUNNING = _Figure((("vllm:num_requests_running",), ("sglang:num_running_reqs",), ("llamacpp:requests_processing",)))
WAITING = _Figure((("vllm:num_requests_waiting",), ("sglang:num_queue_reqs",), ("llamacpp:requests_deferred",)))
STEPS = _Figure(
    (
        ("vllm:generation_tokens_total", "vllm:prompt_tokens_total"),
        ("vllm:generation_tokens_total",),
        ("llamacpp:n_decode_total",),
    )
)
"""Counters that rise while a request is worked on, not only at its end (SGLang's and `llamacpp:tokens_…` do the latter)."""
KV_CACHE = _Figure(
    (
        ("vllm:kv_cache_usage_perc",),
        ("vllm:gpu_cache_usage_perc",),
        ("sglang:token_usage",),
        ("llamacpp:kv_cache_usage_ratio",),
    ),
    limit=1.0,
    is_share=True,
)
PREFIX_QUERIES = _Figure(
    (
        ("vllm:prefix_cache_queries_total",),
        ("vllm:gpu_prefix_cache_queries_total",),
        ("sglang:prompt_tokens_total",),
        ("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),
    )
)
PREFIX_HITS = _Figure(
    (
        ("vllm:prefix_cache_hits_total",),
        ("vllm:gpu_prefix_cache_hits_total",),
        ("sglang:cached_tokens_total",),
        ("llamacpp:prompt_tokens_cached_total",),
    )
)


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine does now, and how far it has counted since it began; None: it does not tell.

    Args:
        running: Requests that it works on.
        waiting: Requests in its queue.
        steps: How far its steps have counted.
        kv_cache_usage: How full its KV cache is, from 0 to 1; of several, the fullest.
        prefix_query_tokens: Prompt tokens that it looked for in its prefix cache.
        prefix_hit_tokens: Those of them that it found there.
        odd: Figures that it tells and that cannot be true, which count as not told.
    """

    running: int | None = None
    waiting: int | None = None
    steps: float | None = None
    kv_cache_usage: float | None = None
    prefix_query_tokens: int | None = None
    prefix_hit_tokens: int | None = None
    odd: tuple[str, ...] = ()


def parse_work(text: str) -> Work | None:
    """The work that `text` tells; None when it tells nothing of that.

    Raises:
        UnreadablePage: It is no page of metrics.
    """
    return work_of(parse(text))


def work_of(families: Mapping[str, Family]) -> Work | None:
    """The work that a page tells; None when it tells nothing of that."""
    odd: list[str] = []
    queries, hits = _count(PREFIX_QUERIES, families, odd), _count(PREFIX_HITS, families, odd)
    if queries is None or hits is None:
        queries = hits = None  # either says nothing without the other
    elif hits > queries:
        odd.append(f"{hits} tokens found in the prefix cache, of {queries}")
        queries = hits = None
    running, waiting = _count(RUNNING, families, odd), _count(WAITING, families, odd)
    steps, usage = _value(STEPS, families, odd), _value(KV_CACHE, families, odd)
    work = Work(running, waiting, steps, usage, queries, hits, tuple(dict.fromkeys(odd)))
    return None if work == Work() else work


def _count(figure: _Figure, families: Mapping[str, Family], odd: list[str]) -> int | None:
    value = _value(figure, families, odd)
    return None if value is None else int(value)


def _value(figure: _Figure, families: Mapping[str, Family], odd: list[str]) -> float | None:
    """The figure, or None; one that cannot be true is added to `odd`."""
    for names in figure.names:
        found = [families[name] for name in names if name in families and families[name].samples]
        # vLLM before 0.9 counted blocks, and said so.
        if len(found) < len(names) or any("blocks" in family.help for family in found):
            continue
        for sample in (sample for family in found for sample in family.samples):
            if not 0 <= sample.value <= figure.limit:  # NaN is neither
                odd.append(f"{sample.name} {sample.value:g}")
                return None
        value = sum(_over_labels(family.samples, is_share=figure.is_share) for family in found)
        return value if value <= figure.limit else None
    return None


def _over_labels(samples: list[Sample], *, is_share: bool) -> float:
    """One family's value: of those who tell of the same, one; of a whole and its parts, the greater."""
    if is_share:
        return max(sample.value for sample in samples)
    told: dict[frozenset[tuple[str, str]], float] = {}
    for sample in samples:
        about = frozenset(pair for pair in sample.pairs if pair[0] not in RANKS)
        told[about] = max(told.get(about, -math.inf), sample.value)
    wholes = sum(value for about, value in told.items() if about & WHOLES)
    return max(wholes, sum(told.values()) - wholes)
