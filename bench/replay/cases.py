"""The cases that policies are compared in: a trace, changed in one way, and a fleet."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from bench.replay import traces
from bench.replay.model_engine import Kind
from bench.replay.offline import Setup
from bench.replay.traces import Request

PLAIN = Kind()
BASE = "base"


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison. `trace` makes its requests from the recorded ones and a seed; the seed also orders those
    of one moment."""

    title: str
    setup: Setup = field(default_factory=Setup)
    trace: Callable[[Sequence[Request], int], Iterable[Request]] = lambda recorded, _seed: recorded

    def requests(self, recorded: Sequence[Request], seed: int) -> list[Request]:
        """The requests in order of time."""
        rng = Random(seed)  # noqa: S311 - seeded
        made = [replace(request, at_s=request.at_s + rng.uniform(0.0, 0.001)) for request in self.trace(recorded, seed)]
        return sorted(made, key=lambda request: request.at_s)


def _fleet(count: int = 8, kind: Kind = PLAIN) -> Setup:
    return Setup(kinds=(kind,) * count)


def _load(factor: float) -> Callable[[Sequence[Request], int], Iterable[Request]]:
    return lambda recorded, _seed: traces.at_load(recorded, factor)


def _until(recorded: Sequence[Request]) -> float:
    return recorded[-1].at_s


CASES = {
    BASE: Case("8 replicas of 3,000 blocks, arrivals as recorded"),
    "replicas-4": Case("4 replicas, half the load", _fleet(4), _load(0.5)),
    "replicas-4-full": Case("4 replicas, full load", _fleet(4)),
    "replicas-16": Case("16 replicas, twice the load", _fleet(16), _load(2.0)),
    "cache-1000": Case("caches of 1,000 blocks", _fleet(kind=Kind(cache_blocks=1000))),
    "cache-10000": Case("caches of 10,000 blocks", _fleet(kind=Kind(cache_blocks=10_000))),
    "load-0.7": Case("load x 0.7", trace=_load(0.7)),
    "load-1.25": Case("load x 1.25", trace=_load(1.25)),
    "load-1.6": Case("load x 1.6", trace=_load(1.6)),
    "slow-one": Case("one replica three times slower", Setup((Kind(tokens_per_s=8000 / 3),) + (PLAIN,) * 7)),
    "cold-one": Case("one replica joins cold after 300 s", Setup((PLAIN,) * 8, joins_at_s=(300.0,) + (0.0,) * 7)),
    "unequal": Case(
        "half of the caches 1,000 blocks, half 5,000",
        Setup((Kind(cache_blocks=1000),) * 4 + (Kind(cache_blocks=5000),) * 4),
    ),
    "shuffled": Case("no shared prefixes", trace=traces.shuffled),
    "agents": Case(
        "made up: agents with tools, 5 to 40 turns",
        trace=lambda recorded, seed: traces.agents(seed, until_s=_until(recorded), per_s=5),
    ),
    "one-prompt": Case(
        "made up: one system prompt of 40 blocks before every question",
        trace=lambda recorded, seed: traces.one_prompt(seed, until_s=_until(recorded), per_s=8),
    ),
    "documents": Case(
        "made up: questions about 400 documents",
        trace=lambda recorded, seed: traces.documents(seed, until_s=_until(recorded), per_s=4),
    ),
}
