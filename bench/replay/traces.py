"""Traces: the public one, made-up ones, and the prompts made from their block ids."""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace. `blocks` are ids of the prompt's 512-token blocks: equal ids, equal text up to there."""

    at_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]


def load(path: Path, *, until_s: float) -> list[Request]:
    """A trace in the format of the Mooncake paper, in order of time."""
    found = []
    with path.open() as lines:
        for line in lines:
            entry = json.loads(line)
            at_s = entry["timestamp"] / 1000
            if at_s < until_s:
                found.append(Request(at_s, entry["input_length"], entry["output_length"], tuple(entry["hash_ids"])))
    return sorted(found, key=lambda request: request.at_s)


def spread(trace: Iterable[Request], width_s: float, seed: int) -> list[Request]:
    """Each request up to `width_s` later: the public trace's times are rounded down to 3 s."""
    rng = random.Random(seed)  # noqa: S311 - seeded
    later = [replace(request, at_s=request.at_s + rng.uniform(0.0, width_s)) for request in trace]
    return sorted(later, key=lambda request: request.at_s)


def at_load(trace: Iterable[Request], factor: float) -> list[Request]:
    """The same requests, `factor` times as many per second."""
    return [replace(request, at_s=request.at_s / factor) for request in trace]


def shuffled(trace: Iterable[Request], seed: int) -> list[Request]:
    """No shared prefixes: every block gets an id of its own. Lengths and times stay."""
    trace = list(trace)
    count = sum(len(request.blocks) for request in trace)
    fresh = iter(random.Random(seed).sample(range(1 << 40), count))  # noqa: S311 - seeded
    return [replace(request, blocks=tuple(next(fresh) for _ in request.blocks)) for request in trace]


def agents(seed: int, *, until_s: float, per_s: float) -> list[Request]:
    """Agents: a tool prompt of 2 to 12 blocks (one of 12), then 5 to 40 turns that each add to the conversation."""
    rng = random.Random(seed)  # noqa: S311 - seeded
    ids = iter(range(1 << 40))
    tools = [[next(ids) for _ in range(rng.randint(2, 12))] for _ in range(12)]
    mean_turns = 22
    found = []
    start_s = -200.0
    while start_s < until_s:
        start_s += rng.expovariate(per_s / mean_turns)
        at_s, blocks = start_s, list(rng.choice(tools))
        for _ in range(rng.randint(5, 40)):
            blocks += [next(ids) for _ in range(max(1, round(rng.expovariate(0.5))))]
            output = round(20 + rng.expovariate(1 / 150))
            if 0 <= at_s < until_s:
                found.append(Request(at_s, _tokens(rng, blocks), output, tuple(blocks)))
            at_s += output * 0.02 + 2 + rng.expovariate(1 / 8)
            if len(blocks) > 120:
                break
    return sorted(found, key=lambda request: request.at_s)


def one_prompt(seed: int, *, until_s: float, per_s: float, head_blocks: int = 40) -> list[Request]:
    """One system prompt of `head_blocks` in front of every question, which is of 1 to some blocks."""
    rng = random.Random(seed)  # noqa: S311 - seeded
    ids = iter(range(head_blocks, 1 << 40))
    head = tuple(range(head_blocks))
    found, at_s = [], 0.0
    while (at_s := at_s + rng.expovariate(per_s)) < until_s:
        blocks = head + tuple(next(ids) for _ in range(1 + round(rng.expovariate(1 / 8))))
        found.append(Request(at_s, _tokens(rng, blocks), round(20 + rng.expovariate(1 / 200)), blocks))
    return found


def documents(seed: int, *, until_s: float, per_s: float) -> list[Request]:
    """Questions about 400 long documents, the popular ones more often (Zipf)."""
    rng = random.Random(seed)  # noqa: S311 - seeded
    ids = iter(range(1 << 40))
    texts = [tuple(next(ids) for _ in range(rng.randint(10, 80))) for _ in range(400)]
    weights = [1 / (rank + 1) for rank in range(len(texts))]
    found, at_s = [], 0.0
    while (at_s := at_s + rng.expovariate(per_s)) < until_s:
        blocks = rng.choices(texts, weights)[0] + (next(ids),)
        found.append(Request(at_s, _tokens(rng, blocks), round(20 + rng.expovariate(1 / 150)), blocks))
    return found


def _tokens(rng: random.Random, blocks: Iterable[int]) -> int:
    return BLOCK_TOKENS * (len(list(blocks)) - 1) + rng.randint(1, BLOCK_TOKENS)


@lru_cache(maxsize=65536)
def text_of(block: int, size_bytes: int) -> str:
    """The text that stands for a block."""
    word = f"{block:x} lorem ipsum dolor sit amet "
    return (word * (size_bytes // len(word) + 1))[:size_bytes]


def prompt(request: Request, bytes_per_token: float) -> str:
    """The whole prompt; its last block is as long as its tokens."""
    whole = int(BLOCK_TOKENS * bytes_per_token)
    text = "".join([text_of(block, whole) for block in request.blocks])
    return text[: max(1, int(request.input_tokens * bytes_per_token))]


def best_possible(trace: Iterable[Request]) -> float:
    """Share of blocks that one endless cache would hit."""
    seen: set[int] = set()
    hits = total = 0
    for request in trace:
        hits += sum(1 for _ in _leading(request.blocks, seen))
        total += len(request.blocks)
        seen.update(request.blocks)
    return hits / total if total else 0.0


def _leading(blocks: tuple[int, ...], seen: set[int]) -> Iterator[int]:
    for block in blocks:
        if block not in seen:
            return
        yield block
