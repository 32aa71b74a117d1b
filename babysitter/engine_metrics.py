"""PURE: what an engine tells of its work in its Prometheus text: requests running and waiting, and whether it moves."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing")
WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred")
STEPS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total", "llamacpp:n_decode_total")
"""Counters that rise while a request is worked on, not only at its end (SGLang's and `llamacpp:tokens_…` do the latter).

The names are the engines' own: vLLM 0.32, SGLang 0.5, llama.cpp b7000 with `--metrics`.
"""


@dataclass(frozen=True, slots=True)
class Work:
    """Requests that an engine has, and how far its steps have counted since it began (None: it does not tell)."""

    running: int
    waiting: int
    steps: float | None


def parse_work(text: str) -> Work | None:
    """The work that `text` tells, summed over labels; None when it tells of no requests."""
    sums = dict.fromkeys((RUNNING, WAITING, STEPS), 0.0)
    present = set()
    for name, value in _samples(text):
        for names in sums:
            if name in names:
                sums[names] += value
                present.add(names)
    if RUNNING not in present:
        return None
    return Work(int(sums[RUNNING]), int(sums[WAITING]), sums[STEPS] if STEPS in present else None)


def _samples(text: str) -> Iterator[tuple[str, float]]:
    """Name and value of each line that has both (`name{labels} value [timestamp]`)."""
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        if rest:
            rest = rest.rpartition("}")[2]
        else:
            name, _, rest = line.partition(" ")
        try:
            value = float(rest.split()[0])
        except (IndexError, ValueError):
            continue
        if math.isfinite(value):
            yield name, value
