"""What each routing policy does to the time to the first token, on a recorded trace.

    python bench/replay.py --trace conversation_trace.jsonl [--install] [--cases base,slow-one]
    python bench/replay.py --trace conversation_trace.jsonl --offline [--cases all] [--svg docs/img]

The first form starts the real router (and sglang-router, fetched into a virtual environment of its own with --install), as
many mock replicas as the case has, and sends the trace at 20 times its speed: a minute per policy and seed. The times are
the engines' own, in seconds of the trace, from when the client sends: a wait in the router is in them. Offline, the router's own policy code runs against model engines with a clock that jumps: the first 1,200 s of the trace
take a fifth of a second. A model engine has a prefix cache of N blocks of 512 tokens (least recently used out first), one
queue of prompts read at 8,000 uncached tokens a second, and writes a token every 20 ms. The trace is the public one of the
Mooncake paper (kvcache-ai/Mooncake on GitHub, FAST25-release/traces), or any in its format.
"""

import argparse
import itertools
import json
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # a script's own folder comes first otherwise, and holds a `router` that is not the router

from bench.flags import names_of  # noqa: E402
from bench.replay import offline, sockets, traces  # noqa: E402 - see above
from bench.replay.cases import BASE, CASES, Case  # noqa: E402
from bench.replay.figures import Figures, bars_svg, lines_svg, medians, quantile, table  # noqa: E402
from bench.replay.offline import POLICIES  # noqa: E402
from bench.replay.several import Routers  # noqa: E402
from bench.replay.traces import Request  # noqa: E402
from bench.router.machine import BenchError, describe, load_average  # noqa: E402
from router.model import Facts  # noqa: E402
from router.policy.models import POLICIES as OURS  # noqa: E402
from router.policy.peers import TELL_S  # noqa: E402

LATE_LIMIT_S = 0.05
"""By which the latest hundredth of the requests may be sent too late, in real seconds: one second of the trace at 20 times."""
TARGETS = [*OURS, "sglang:cache_aware", "sglang:round_robin"]


def figures_of(case: str, policy: str, seed: int, requests: Sequence[Request], outcome: offline.Outcome) -> Figures:
    """The figures of one replay."""
    return Figures(
        case,
        policy,
        seed,
        outcome.mean_s,
        quantile(outcome.ttft_s, 0.5),
        quantile(outcome.ttft_s, 0.9),
        quantile(outcome.ttft_s, 0.99),
        outcome.hit_share,
        outcome.imbalance,
        offline.floor(requests, 8000.0),
        traces.best_possible(requests),
        outcome.too_late_share if outcome.waited_s else 0.0,
    )


def run_offline(
    options: argparse.Namespace, recorded: Sequence[Request], curves: dict[str, Sequence[float]]
) -> list[Figures]:
    """All cases, seeds and policies; `curves` gets the times of the first seed of the base case."""
    found = []
    for name in options.cases:
        case: Case = CASES[name]
        for seed in range(1, options.seeds + 1):
            spread = traces.spread(recorded, options.spread, seed) if options.spread else recorded
            requests = case.requests(spread, seed)
            facts = [offline.facts_of(request, options.bytes_per_token) for request in requests]
            for policy, routers in itertools.product(options.policies, options.routers or [None]):
                began = time.perf_counter()
                outcome = offline_once(options, requests, facts, case, policy, seed, routers)
                label = policy if routers is None else f"{policy}, routers: {routers}"
                one = figures_of(name, label, seed, requests, outcome)
                found.append(one)
                if name == BASE and seed == 1:
                    curves[label] = outcome.ttft_s
                note(
                    f"{name:12} {label:20} seed {seed}: mean {one.mean_s:6.2f} s, {one.hit_share:5.1%} hit, "
                    f"told {outcome.told_bytes_s:.0f} bytes/s, in {time.perf_counter() - began:.2f} s"
                )
    return found


def offline_once(  # noqa: PLR0917
    options: argparse.Namespace,
    requests: Sequence[Request],
    facts: Sequence[Facts],
    case: Case,
    policy: str,
    seed: int,
    count: int | None,
) -> offline.Outcome:
    """One replay, by so many routers; with several a router's second is one of the trace."""
    setup = replace(case.setup, read_ahead_s=options.read_ahead)
    if count is None:
        return offline.replay(requests, facts, setup, POLICIES[policy], seed)
    routers = Routers(count, tell_s=options.tell, loss=options.loss)
    return offline.replay(requests, facts, replace(setup, speed=1.0), POLICIES[policy], seed, routers=routers)


def run_through_sockets(
    options: argparse.Namespace, recorded: Sequence[Request], curves: dict[str, Sequence[float]]
) -> list[Figures]:
    """The same through real routers, policies in turn within each seed."""
    options.work.mkdir(parents=True, exist_ok=True)
    program = ""
    if any(target.startswith("sglang:") for target in options.targets):
        try:
            program = sockets.SGLANG.prepare(options.work, install=options.install)
        except BenchError as error:
            note(f"without sglang-router: {error}")
    targets = [target for target in options.targets if program or not target.startswith("sglang:")]
    found = []
    for name in options.cases:
        case: Case = CASES[name]
        for seed in range(1, options.seeds + 1):
            requests = case.requests(recorded, seed)
            for target in targets:
                measured = in_time(options, requests, case, target, program if target.startswith("sglang:") else "")
                one = replace(
                    figures_of(name, target, seed, requests, measured.outcome),
                    faults=measured.faults,
                    cpu_us=measured.cpu_us,
                )
                found.append(one)
                if name == BASE and seed == 1:
                    curves[target] = measured.outcome.ttft_s
                note(
                    f"{name:12} {target:20} seed {seed}: mean {one.mean_s:6.2f} s, {one.hit_share:5.1%} hit, "
                    f"{one.cpu_us:6.0f} µs/request, faults {one.faults} {measured.first_fault}, "
                    f"client late by {measured.lag_p99_s * 1e3:.0f} ms (p99), load {load_average()}"
                )
    return found


def in_time(
    options: argparse.Namespace, requests: Sequence[Request], case: Case, target: str, sglang: str
) -> sockets.Measured:
    """One replay; again, twice at most, if the machine was too busy for the client to keep the trace's time."""
    for left in (2, 1, 0):
        with tempfile.TemporaryDirectory(prefix="replay-", dir=options.work) as folder:
            place = sockets.Place(
                Path(folder),
                options.router_core,
                options.load_core,
                options.workers,
                options.speed,
                options.bytes_per_token,
            )
            setup = replace(case.setup, read_ahead_s=options.read_ahead)
            measured = sockets.replay(requests, setup, target, sglang, place)
        if measured.lag_p99_s <= LATE_LIMIT_S or not left:
            break
        note(f"{target}: the client was late by {measured.lag_p99_s * 1e3:.0f} ms (p99); once more")
    return measured


def note(text: str) -> None:
    """Progress, apart from the report."""
    print(text, file=sys.stderr, flush=True)


def counts_of(text: str) -> list[int]:
    """Numbers between commas."""
    return [int(word) for word in text.split(",")]


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench/replay.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--trace", type=Path, required=True, help="the recorded trace, one JSON object per line")
    add("--offline", action="store_true", help="simulate the router too: seconds instead of minutes")
    add("--until", type=float, default=1200.0, help="seconds of the trace that are used (default: 1200)")
    add("--cases", type=names_of(list(CASES)), default=[BASE], help=f"of: {', '.join(CASES)}, or all (default: base)")
    add("--policies", type=names_of(list(POLICIES)), default=list(POLICIES), help=f"of: {', '.join(POLICIES)}")
    add(
        "--seeds",
        type=int,
        default=3,
        help="repetitions, each with requests of one moment in another order (default: 3)",
    )
    add("--bytes-per-token", type=float, default=2.0, help="size of the text that stands for a token (default: 2)")
    add("--routers", type=counts_of, default=[], help="offline, so many routers each, such as 1,2,8")
    add(
        "--tell",
        type=float,
        default=TELL_S,
        help="seconds between two shares of a router; 0: none (default: %(default)s)",
    )
    add("--loss", type=float, default=0.0, help="share of the shares that are lost (default: 0)")
    add(
        "--read-ahead",
        type=float,
        default=1.0,
        help="seconds of the trace that a replica gets ahead; 0: all (default: 1)",
    )
    add("--spread", type=float, default=0.0, help="offline: each request up to so many seconds later (default: 0)")
    add("--svg", type=Path, metavar="FOLDER", help="write plots there")
    add("--json", type=Path, metavar="FILE", help="write every single figure there")
    add("--targets", type=names_of(TARGETS), default=["sglang:cache_aware", "least_loaded", "cost"],
        help=f"through sockets, of: {', '.join(TARGETS)} (default: sglang:cache_aware,least_loaded,cost)")  # fmt: skip
    add("--workers", type=int, default=1, help="worker processes of our router (default: 1)")
    add("--speed", type=float, default=20.0, help="through sockets: times faster than recorded (default: 20)")
    add("--install", action="store_true", help="fetch sglang-router into the work folder if it is not there")
    add("--work", type=Path, default=Path(tempfile.gettempdir()) / "inference-svc-bench",
        help="folder for programs and logs; may be thrown away (default: %(default)s)")  # fmt: skip
    add("--router-core", type=int, default=0, help="core of the routers (default: 0)")
    add("--load-core", type=int, default=1, help="core of the replicas (default: 1)")
    return parser.parse_args(words)


def main() -> int:
    """Replay and report."""
    words = sys.argv[1:]
    options = parse(words)
    recorded = traces.load(options.trace, until_s=options.until)
    curves: dict[str, Sequence[float]] = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that what runs is ended
    load_before = load_average()
    found = (run_offline if options.offline else run_through_sockets)(options, recorded, curves)
    middle = medians(found)
    print(f"- command: `{shlex.join(['python', 'bench/replay.py', *words])}`")
    print(f"- {len(recorded):,} requests recorded; medians of {options.seeds} seeds; seconds of the trace")
    if not options.offline:
        print(f"- machine: {describe()}; load average {load_before} before, {load_average()} after\n")
    names = [one.policy for one in middle]
    print(table(middle, next((name for name in ("sglang:cache_aware", "prefix") if name in names), names[0])))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    if options.svg:
        options.svg.mkdir(parents=True, exist_ok=True)
        (options.svg / "routing-cases.svg").write_text(bars_svg(middle, "Mean time to first token above the floor"))
        if curves:
            (options.svg / "routing-base.svg").write_text(lines_svg(curves, "Requests answered within, base case"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
