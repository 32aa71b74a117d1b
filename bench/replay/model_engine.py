"""The inference engine of the simulation: a prefix cache of N blocks (least recently used out first), one queue of prompts
read first come first served at so many uncached tokens a second, and a fixed time per token written."""

from collections import OrderedDict
from dataclasses import dataclass

from bench.replay.traces import BLOCK_TOKENS, Request


@dataclass(frozen=True, slots=True)
class Kind:
    """What a replica can do."""

    cache_blocks: int = 3000
    tokens_per_s: float = 8000.0
    token_s: float = 0.020


@dataclass(frozen=True, slots=True)
class Served:
    """How one request went, in seconds of the trace."""

    first_s: float
    end_s: float
    hit_blocks: int
    uncached_tokens: int


class ModelEngine:
    """One replica."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._cache: OrderedDict[int, None] = OrderedDict()
        self._free_s = 0.0
        self.read_tokens = 0

    def serve(self, request: Request, at_s: float) -> Served:
        """Take a request that arrives at `at_s`; calls come in order of time."""
        cache = self._cache
        hits = 0
        for block in request.blocks:
            if block not in cache:
                break
            hits += 1
        for block in request.blocks:
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > self.kind.cache_blocks:
            cache.popitem(last=False)
        uncached = max(1, request.input_tokens - hits * BLOCK_TOKENS)
        first_s = max(at_s, self._free_s) + uncached / self.kind.tokens_per_s
        self._free_s = first_s
        self.read_tokens += uncached
        return Served(first_s, first_s + request.output_tokens * self.kind.token_s, hits, uncached)
