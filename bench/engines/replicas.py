"""vLLM servers on loopback: started, asked for their own counters, their caches emptied."""

import contextlib
import json
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.replay.mock import MODEL
from bench.router.machine import BenchError, free_port, started, wait_until_answers
from common.exposition import parse
from tests.engines import vllm
from tests.engines.install import once, run

READY_S = 600.0
"""Half a minute on a quiet machine."""
RESET_S = 60.0
SOURCE = Path(__file__).resolve().parent / "model.py"
MODEL_NAME = "bench-llama"
KV_BYTES_PER_TOKEN = 2 * 8 * 512 * 2
"""Keys and values, layers, hidden size, bytes of a bfloat16: of the model that `model.py` makes."""


@dataclass(frozen=True, slots=True)
class Counters:
    """An engine's own, since it began."""

    queries: float = 0.0
    """Prompt tokens that its prefix cache was asked for."""
    hits: float = 0.0
    written: float = 0.0
    first_s: float = 0.0
    """Seconds from the arrival of each request to its first token, in all."""

    def __sub__(self, earlier: "Counters") -> "Counters":
        return Counters(
            self.queries - earlier.queries,
            self.hits - earlier.hits,
            self.written - earlier.written,
            self.first_s - earlier.first_s,
        )


_NAMES = {
    "vllm:prefix_cache_queries_total": "queries",
    "vllm:prefix_cache_hits_total": "hits",
    "vllm:generation_tokens_total": "written",
    "vllm:time_to_first_token_seconds_sum": "first_s",
}


_HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Replica:
    """One server. `name` is what it says of itself in every answer (`system_fingerprint`)."""

    name: str
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def counters(self) -> Counters:
        """What it has counted."""
        found = dict.fromkeys(_NAMES.values(), 0.0)
        for sample in (
            sample for family in parse(self._ask("/metrics").decode()).values() for sample in family.samples
        ):
            if (name := _NAMES.get(sample.name)) is not None:
                found[name] += sample.value
        return Counters(**found)

    def forget(self) -> None:
        """Empty its prefix cache.

        Raises:
            BenchError: It refuses, as it does while requests run.
        """
        deadline = time.monotonic() + RESET_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self._ask("/reset_prefix_cache", b"")
                return
            time.sleep(0.5)
        raise BenchError(f"{self.name} does not empty its cache within {RESET_S:.0f} s")

    def tokens(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The prompt that it makes of `messages`."""
        said = self._ask("/tokenize", json.dumps({"model": MODEL, "messages": messages}).encode())
        found: list[int] = json.loads(said)["tokens"]
        return found

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(self.url + path, body, _HEADERS), timeout=RESET_S) as answer:
            said: bytes = answer.read()
        return said


def most_possible(turns: Sequence[tuple[Sequence[int], Sequence[int]]], block_tokens: int) -> float:
    """The share of all prompts' tokens that one endless cache of whole blocks would hit, had it each turn before the next.

    Args:
        turns: Of each in order, the tokens of its prompt, and those of prompt and answer.
        block_tokens: Of a block.
    """
    cached: set[int] = set()
    hits = 0
    for prompt, whole in turns:
        for chained in _chain(prompt[:-1], block_tokens):  # an engine computes at least one token
            if chained not in cached:
                break
            hits += block_tokens
        cached.update(_chain(prompt, block_tokens))
        cached.update(_chain(whole, block_tokens))
    return hits / max(1, sum(len(prompt) for prompt, _ in turns))


def _chain(tokens: Sequence[int], block_tokens: int) -> Iterator[int]:
    """Of each whole block a number that stands for it and all before it."""
    chained = 0
    for end in range(block_tokens, len(tokens) + 1, block_tokens):
        chained = hash((chained, *tokens[end - block_tokens : end]))
        yield chained


def model() -> Path:
    """The folder of what `model.py` makes; made the first time."""
    folder = vllm.MODELS / MODEL_NAME
    interpreter = vllm.program().with_name("python")
    return once(folder, lambda: run(str(interpreter), str(SOURCE), str(folder)))


@contextmanager
def running(count: int, more: Sequence[str], cores: str, work: Path) -> Iterator[list[Replica]]:
    """`count` servers of that model, ready, until the block ends. `more`: further arguments of each."""
    folder = model()
    replicas = [Replica(f"replica-{number}", free_port()) for number in range(count)]
    env = {**vllm.ENVIRONMENT, "VLLM_SERVER_DEV_MODE": "1"}  # without it nobody may empty the cache
    if "--kv-cache-memory-bytes" in more:
        del env["VLLM_CPU_KVCACHE_SPACE"]  # whole GB, and counts for more than the flag
    with ExitStack() as stack:
        begun = []
        for replica in replicas:
            words = [str(vllm.program()), "serve", str(folder), "--served-model-name", MODEL, "--host", "127.0.0.1"]
            words += ["--port", str(replica.port), "--dtype", "bfloat16", "--enforce-eager", "--max-num-seqs", "16"]
            words += ["--enable-prompt-tokens-details", "--fingerprint-mode", "custom"]
            words += ["--fingerprint-value", replica.name, *more]
            log = work / f"{replica.name}.log"
            process = stack.enter_context(started(words, core=cores, log=log, folder=work, env=env))
            begun.append((replica, process, log))
        for replica, process, log in begun:
            wait_until_answers(replica.port, b"GET /health HTTP/1.1\r\nhost: r\r\n\r\n", process, log, READY_S)
        yield replicas
