"""One workload through one router before running engines."""

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.engines import conversations
from bench.engines.replicas import KV_BYTES_PER_TOKEN, Counters, Replica, most_possible
from bench.engines.report import Run
from bench.replay import client
from bench.replay.sockets import READY_S, SGLANG, our_words, sglang_words
from bench.replay.traces import Request
from bench.router.machine import BenchError, free_port, load_average, started, wait_until_answers
from tests.engines.install import PLACE

ROOT = Path(__file__).resolve().parents[2]
MOST_FAULTS_TOLD = 3


@dataclass(frozen=True, slots=True)
class Place:
    """Where things run, and how."""

    work: Path
    cores: str = "0,1"
    """As taskset lists them."""
    workers: int = 1
    at_once: int = conversations.AT_ONCE
    cache_tokens: int = 24_000
    block_tokens: int = 32
    install: bool = False

    @property
    def sizes(self) -> tuple[str, ...]:
        """vLLM's flags for the cache."""
        kv_bytes = self.cache_tokens * KV_BYTES_PER_TOKEN
        return ("--block-size", str(self.block_tokens), "--kv-cache-memory-bytes", str(kv_bytes))


@contextmanager
def router(target: str, engines: Sequence[Replica], place: Place) -> Iterator[str]:
    """The address of one router, ready, until the block ends: a policy of ours, or `sglang:POLICY`."""
    port, ports = free_port(), [engine.port for engine in engines]
    log = place.work / f"{target.replace(':', '-')}.log"
    with tempfile.TemporaryDirectory(prefix="engines-", dir=place.work) as folder:
        if target.startswith("sglang:"):
            words = sglang_words(target, SGLANG.prepare(PLACE, install=place.install), port, ports)
        else:
            words = our_words(target, port, ports, Path(folder), place.workers)
        with started(words, core=place.cores, log=log, folder=ROOT) as process:
            wait_until_answers(port, client.raw_request(Request(0.0, 1, 1, (0,)), 1.0), process, log, READY_S)
            yield f"http://127.0.0.1:{port}"


def converse(case: str, target: str, seed: int, engines: Sequence[Replica], place: Place) -> Run:
    """All conversations of a case through one router, before emptied caches.

    Raises:
        BenchError: The router does not start, or changes what is asked.
    """
    plans = conversations.CASES[case](seed, f"{target} {time.time()}")
    with router(target, engines, place) as url:
        for engine in engines:
            engine.forget()
        before = [engine.counters() for engine in engines]
        began = time.monotonic()
        seen = asyncio.run(conversations.hold(url, plans, place.at_once))
        took_s = time.monotonic() - began
        spent: list[Counters] = [engine.counters() - was for engine, was in zip(engines, before, strict=True)]
    written, wanted = sum(one.written for one in spent), sum(map(len, plans)) * conversations.ANSWER_TOKENS
    if not seen.faults and written != wanted:
        raise BenchError(f"{target} changed how many tokens are asked for: {written:.0f} instead of {wanted}")
    read = [(engines[0].tokens(messages[:-1]), engines[0].tokens(messages)) for messages in seen.asked]
    return Run(
        case=case,
        target=target,
        seed=seed,
        asked_tokens=sum(one.queries for one in spent),
        hit_tokens=sum(one.hits for one in spent),
        possible=most_possible(read, place.block_tokens),
        ttft_s=seen.ttft_s,
        engine_ms=sum(one.first_s for one in spent) / sum(map(len, plans)) * 1e3,
        moved=seen.moved,
        shares=[seen.served.get(engine.name, 0) for engine in engines],
        faults=seen.faults[:MOST_FAULTS_TOLD],
        took_s=took_s,
        load=load_average(),
    )
