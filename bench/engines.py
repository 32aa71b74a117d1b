"""What routers do for real engines and their real prefix caches: vLLM for CPUs, two replicas, a model of random weights.

    python bench/engines.py [--install] [--seeds 1,2,3] [--cases shared,apart,overhead]

  shared    40 conversations of 3 turns, six at once, 10 system prompts of about 2,300 tokens among them; each cache holds
            about 24,000 tokens
  apart     as many questions of that length, no two with an equal beginning
  overhead  `vllm bench serve` asks one engine itself and through our router, with one request at a time and with four; on
            two cores give the engine its own (--cores 0 --engine-cores 1), or it and who waits for it take turns

Within one seed all routers are asked in turn, each started anew and before emptied caches; the next seed begins with another.
Hits are the engines' own counters, the time to the first token is the client's. vLLM and its models are made under
data/engines the first time (3.4 GB, by tests/engines/vllm.py).
"""

import argparse
import json
import shlex
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # a script's own folder comes first otherwise, and holds a `router` that is not the router

from bench.engines import conversations, overhead, replicas, report  # noqa: E402 - see above
from bench.engines.report import DIRECT, OURS, Added, Run  # noqa: E402
from bench.engines.talk import Place, converse, router  # noqa: E402
from bench.flags import names_of  # noqa: E402
from bench.router.machine import BenchError, describe, load_average  # noqa: E402
from router.policy.models import POLICIES  # noqa: E402
from tests.engines import vllm  # noqa: E402

OVERHEAD = "overhead"
CASES = [*conversations.CASES, OVERHEAD]
TARGETS = [*POLICIES, "sglang:cache_aware", "sglang:round_robin"]


def compare(options: argparse.Namespace, place: Place) -> list[Run]:
    """All conversations through all routers, in turn within each seed."""
    cases = [case for case in options.cases if case != OVERHEAD]
    if not cases:
        return []
    runs = []
    with replicas.running(2, place.sizes, place.cores, place.work) as engines:
        for number, seed in enumerate(options.seeds):
            turn = number % len(options.targets)
            for case in cases:
                for target in [*options.targets[turn:], *options.targets[:turn]]:
                    runs.append(converse(case, target, seed, engines, place))
                    note(str(runs[-1]))
    return runs


def measure_overhead(options: argparse.Namespace, place: Place) -> list[Added]:
    """vLLM's own client, directly and through our router in turn."""
    if OVERHEAD not in options.cases:
        return []
    model = replicas.model()
    found = []
    with (
        replicas.running(1, place.sizes, options.engine_cores or place.cores, place.work) as (engine,),
        router("cost", [engine], place) as url,
    ):
        ways = [(DIRECT, engine.url), (OURS, url)]
        for repetition in range(options.repetitions):
            for at_once in options.concurrency:
                for name, address in ways:
                    engine.forget()
                    times = overhead.ask(
                        address, model, seed=repetition, at_once=at_once, cores=place.cores, work=place.work
                    )
                    found.append(Added(name, at_once, repetition, times.ttft_ms, times.itl_ms, load_average()))
                    note(str(found[-1]))
            ways.reverse()
    return found


def note(text: str) -> None:
    """Progress, apart from the report."""
    print(text, file=sys.stderr, flush=True)


def numbers(text: str) -> list[int]:
    """A flag's list of numbers."""
    return [int(word) for word in text.split(",")]


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench/engines.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cases", type=names_of(CASES), default=CASES, help=f"of: {', '.join(CASES)} (default: all)")
    add("--targets", type=names_of(TARGETS), default=["round_robin", "cost", "sglang:cache_aware"],
        help=f"whom conversations go through, of: {', '.join(TARGETS)} (default: round_robin,cost,sglang:cache_aware)")  # fmt: skip
    add("--seeds", type=numbers, default=[1, 2, 3], help="of the conversations (default: 1,2,3)")
    add("--at-once", type=int, default=conversations.AT_ONCE, help="conversations at a time (default: %(default)s)")
    add("--cache-tokens", type=int, default=24_000, help="what each replica's cache holds (default: %(default)s)")
    add("--block-tokens", type=int, default=32, help="of the caches; vLLM's default on a CPU is 128 (default: 32)")
    add("--repetitions", type=int, default=5, help="of the overhead's pairs (default: %(default)s)")
    add("--concurrency", type=numbers, default=[1, 4], help="of vllm bench serve, in turn (default: 1,4)")
    add("--workers", type=int, default=1, help="worker processes of our router (default: 1)")
    add("--cores", default="0,1", help="cores of everything, as taskset lists them (default: 0,1)")
    add("--engine-cores", help="cores of the overhead's engine, apart from router and client (default: as --cores)")
    add("--install", action="store_true", help="fetch sglang-router into data/engines if it is not there")
    add("--work", type=Path, default=Path(tempfile.gettempdir()) / "inference-svc-bench",
        help="folder for logs; may be thrown away (default: %(default)s)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write every single figure there")
    return parser.parse_args(words)


def main() -> int:
    """Run and report; the exit code says only whether it could be made."""
    words = sys.argv[1:]
    options = parse(words)
    options.work.mkdir(parents=True, exist_ok=True)
    place = Place(
        options.work,
        options.cores,
        options.workers,
        options.at_once,
        options.cache_tokens,
        options.block_tokens,
        options.install,
    )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that what runs is ended
    load_before = load_average()
    try:
        runs = compare(options, place)
        added = measure_overhead(options, place)
    except BenchError as error:
        note(f"bench/engines.py: {error}")
        return 1
    print(f"- command: `{shlex.join(['python', 'bench/engines.py', *words])}`")
    print(f"- when: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}; vLLM {vllm.VERSION}")
    print(f"- machine: {describe()}; load average {load_before} before, {load_average()} after")
    for table in report.tables(runs, added):
        print(f"\n{table}")
    if options.json:
        options.json.write_text(json.dumps([*map(asdict, runs), *map(asdict, added)], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
