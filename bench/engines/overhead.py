"""`vllm bench serve`, vLLM's own client, asking an engine itself and through a router: one run of it, as it counts."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.replay.mock import MODEL
from bench.router.machine import BenchError
from tests.engines import vllm

PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 48, 128, 32
RUN_S = 600.0


@dataclass(frozen=True, slots=True)
class Times:
    """Medians of one run, in milliseconds."""

    ttft_ms: float
    itl_ms: float


def ask(url: str, model: Path, *, seed: int, at_once: int, cores: str, work: Path) -> Times:
    """One run against `url`. The same seed is the same prompts, so the engine's cache must be empty.

    Raises:
        BenchError: It failed, or answers did.
    """
    words = ["taskset", "-c", cores, str(vllm.program()), "bench", "serve", "--backend", "openai", "--base-url", url]
    words += ["--model", MODEL, "--tokenizer", str(model), "--dataset-name", "random", "--seed", str(seed)]
    words += ["--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(ANSWER_TOKENS)]
    words += ["--num-prompts", str(PROMPTS), "--num-warmups", "4", "--max-concurrency", str(at_once), "--ignore-eos"]
    words += ["--disable-tqdm", "--save-result", "--result-dir", str(work), "--result-filename", "bench-serve.json"]
    env = {**vllm.ENVIRONMENT, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(words, cwd=work, env=env, capture_output=True, text=True, timeout=RUN_S, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(words)} failed:\n{(done.stderr or done.stdout)[-2000:]}")
    told = json.loads((work / "bench-serve.json").read_text())
    if told["completed"] != PROMPTS:
        raise BenchError(f"vllm bench serve had {told['completed']} answers of {PROMPTS} through {url}")
    return Times(told["median_ttft_ms"], told["median_itl_ms"])
