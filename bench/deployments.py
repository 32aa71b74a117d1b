"""What the planner of deployments does with many models on few accelerators, in a model world with a clock that jumps.

    python bench/deployments.py --simulate [--models 20] [--accelerators 4] [--per-s 0.02,0.05,0.1] [--seeds 5]
    python bench/deployments.py --fleets 2000 [--first 0]
    python bench/deployments.py --real [--minutes 10] [--models 20] [--accelerators 4] [--per-s 0.15] [--seeds 1]

The first form: an hour of Zipf traffic, each model needs one accelerator and 10 to 60 s to start, a request takes 5 s on
average; nothing runs but the planner itself. The second form: random fleets with faults, and what must hold of them
(bench/deployments/fleets.py); the first that breaks is told with its seed. The third form: the first one's traffic in real
processes that start sooner (bench/deployments/real.py); it ends with 1 when something that must hold did not.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # a script's own folder comes first otherwise, and holds a `router` that is not the router

from bench.deployments.fleets import run  # noqa: E402 - see above
from bench.deployments.real import real  # noqa: E402
from bench.deployments.world import Broken  # noqa: E402
from bench.deployments.zipf import DWELL_S, simulate, thrash_limit  # noqa: E402
from bench.replay.figures import quantile  # noqa: E402

HOLD_S = 60.0
"""Longer than this a request that is no stream is not held: it gets 503 with the ETA."""


def hours(options: argparse.Namespace) -> None:
    """One line for each rate and seed."""
    print(f"{options.models} models on {options.accelerators} accelerators, one hour, dwell {DWELL_S:.0f} s")
    print("per_s  seed  requests  lost  cold starts  evictions (limit)  shortest life  wait p50  p95  over 60 s  cpu")
    for rate in options.per_s:
        for seed in range(options.seeds):
            began = time.process_time()
            world = simulate(seed, per_s=rate, models=options.models, accelerators=options.accelerators)
            found = world.figures
            over = sum(1 for wait_s in found.waits_s if wait_s > HOLD_S) / max(1, len(found.waits_s))
            evicted = sum(found.evictions.values())
            print(
                f"{rate:5g}  {seed:4}  {found.requests:8}  {found.lost:4}  {sum(found.starts.values()):11}"
                f"  {evicted:9} ({thrash_limit(world, options.accelerators):5})  {min(found.lives_s, default=0.0):11.0f} s"
                f"  {quantile(found.waits_s, 0.5):6.0f} s  {quantile(found.waits_s, 0.95):3.0f} s  {over:9.1%}"
                f"  {time.process_time() - began:.1f} s"
            )
            reasons = ", ".join(f"{count} {reason}" for reason, count in found.leaves.most_common(5))
            print(f"       left: {reasons or 'none'}")


def fleets(first: int, count: int) -> int:
    """Random fleets; the exit status."""
    began = time.monotonic()
    for seed in range(first, first + count):
        try:
            run(seed, faults=seed % 2 == 1)
        except Broken as fault:
            print(f"seed {seed}: {fault}")
            return 1
    print(f"{count} fleets held in {time.monotonic() - began:.0f} s")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--accelerators", type=int, default=4)
    parser.add_argument("--per-s", type=lambda text: [float(one) for one in text.split(",")], default=None)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fleets", type=int, default=0, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    options = parser.parse_args(arguments)
    if not (options.simulate or options.fleets or options.real):
        parser.error("needs --simulate, --fleets N or --real")
    if options.simulate:
        options.per_s = options.per_s or [0.02, 0.05, 0.1]
        hours(options)
    if options.real:
        given = {"minutes": options.minutes, "models": options.models, "accelerators": options.accelerators}
        (rate, *_) = options.per_s or [0.15]
        return max(asyncio.run(real(**given, per_s=rate, seed=seed)) for seed in range(options.seeds))
    return fleets(options.first, options.fleets) if options.fleets else 0


if __name__ == "__main__":
    sys.exit(main())
