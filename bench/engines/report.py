"""What the figures say: tables and bounds. Nothing is measured here."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from bench.router.figures import Bound, bound_table, median_within, spread, table

DIRECT, OURS, COST, ROUND_ROBIN = "direct", "ours", "cost", "round_robin"
HITS_BOUND, TTFT_BOUND, APART_BOUND, ADDED_BOUND_MS = 0.86, 0.5, 1.0, 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """One case with one seed through one router."""

    case: str
    target: str
    seed: int
    asked_tokens: float
    """By the engines' own counters, as the next."""
    hit_tokens: float
    possible: float
    """The share that one endless cache would have hit."""
    ttft_s: list[float]
    """As the clients saw it."""
    engine_ms: float
    """The mean of the same by the engines' own counters: what is more is the way there."""
    moved: int
    shares: list[int]
    faults: list[str]
    took_s: float
    load: str

    @property
    def hit_share(self) -> float:
        return self.hit_tokens / max(1.0, self.asked_tokens)

    @property
    def mean_ms(self) -> float:
        return mean(self.ttft_s) * 1e3

    @property
    def median_ms(self) -> float:
        return median(self.ttft_s) * 1e3

    def __str__(self) -> str:
        return (
            f"{self.case:6} {self.target:18} seed {self.seed}: {self.hit_share:5.1%} hit of {self.possible:.1%}, TTFT mean {self.mean_ms:.0f} "
            f"median {self.median_ms:.0f} ms, the engines' {self.engine_ms:.0f} ms, moved {self.moved}, shares {self.shares}, in {self.took_s:.0f} s, "
            f"load {self.load}, faults {self.faults}"
        )


@dataclass(frozen=True, slots=True)
class Added:
    """One run of vllm bench serve, directly or through a router: its medians."""

    way: str
    at_once: int
    repetition: int
    ttft_ms: float
    itl_ms: float
    load: str


def tables(runs: Sequence[Run], added: Sequence[Added]) -> list[str]:
    """All that was measured, as Markdown."""
    cases = dict.fromkeys(run.case for run in runs)
    made = [f"### {case}\n\n{_case(runs, case)}" for case in cases]
    if added:
        made.append(f"### vllm bench serve\n\n{_overhead(added)}")
    return [*made, f"### Bounds\n\n{bound_table(bounds(runs, added))}"]


def _case(runs: Sequence[Run], case: str) -> str:
    header = ("router", "prompt tokens hit", "each seed", "most possible", "TTFT mean ms", "each seed", "median ms", "the engines' mean ms", "/ round_robin",
              "turns that changed replica", "load", "faults")  # fmt: skip
    rows = []
    for target in dict.fromkeys(run.target for run in runs):
        mine = [run for run in runs if (run.case, run.target) == (case, target)]
        ratio = spread(_ratios(runs, case, target))
        rows.append(
            [
                target,
                f"{median(run.hit_share for run in mine):.1%}",
                ", ".join(f"{run.hit_share:.1%}" for run in mine),
                f"{median(run.possible for run in mine):.1%}",
                f"{median(run.mean_ms for run in mine):.0f}",
                ", ".join(f"{run.mean_ms:.0f}" for run in mine),
                f"{median(run.median_ms for run in mine):.0f}",
                f"{median(run.engine_ms for run in mine):.0f}",
                f"{ratio.middle:.2f}" if ratio else "",
                ", ".join(str(run.moved) for run in mine),
                ", ".join(run.load for run in mine),
                str(sum(len(run.faults) for run in mine)),
            ]
        )
    return table(header, rows)


def _ratios(runs: Sequence[Run], case: str, target: str) -> list[float]:
    """Of the mean time to the first token to round robin's, seed by seed."""
    base = {run.seed: run.mean_ms for run in runs if (run.case, run.target) == (case, ROUND_ROBIN)}
    mine = {run.seed: run.mean_ms for run in runs if (run.case, run.target) == (case, target)}
    return [mine[seed] / base[seed] for seed in base.keys() & mine.keys()]


def _overhead(added: Sequence[Added]) -> str:
    header = ("at once", "TTFT direct ms", "through ours", "added (each pair)", "ITL direct ms", "through ours",
              "added (each pair)", "load")  # fmt: skip
    rows = []
    for at_once in dict.fromkeys(one.at_once for one in added):
        mine = [one for one in added if one.at_once == at_once]
        row = [str(at_once)]
        for name in ("ttft_ms", "itl_ms"):
            row += [f"{median(getattr(one, name) for one in mine if one.way == way):.2f}" for way in (DIRECT, OURS)]
            row.append(", ".join(f"{value:+.2f}" for value in pairs(mine, at_once, name)))
        rows.append([*row, f"{min(one.load for one in mine)}-{max(one.load for one in mine)}"])
    return table(header, rows)


def pairs(added: Sequence[Added], at_once: int, name: str) -> list[float]:
    """Through ours minus direct, repetition by repetition."""
    found = {(one.way, one.repetition): getattr(one, name) for one in added if one.at_once == at_once}
    turns = sorted({repetition for _, repetition in found})
    return [found[OURS, turn] - found[DIRECT, turn] for turn in turns]


def _added_bound(title: str, at_once: int, values: Sequence[float]) -> Bound:
    """Holds or is missed only where all of the median's interval says so; else nothing is shown."""
    within, measured = median_within(values), str(spread(values))
    holds: bool | None = None
    if within is not None:
        measured += f", 95 %: {within[0]:+.2f} to {within[1]:+.2f}"
        if within[1] <= ADDED_BOUND_MS or within[0] > ADDED_BOUND_MS:
            holds = within[1] <= ADDED_BOUND_MS
    what = f"vllm bench serve, {at_once} at once: median {title} added, ms"
    return Bound(what, f"≤ {ADDED_BOUND_MS:g}", measured, holds)


def bounds(runs: Sequence[Run], added: Sequence[Added]) -> list[Bound]:
    """What is wanted, and whether it holds: by the median, and for what a router adds by its interval."""
    judged = []
    hits = spread(run.hit_share for run in runs if (run.case, run.target) == ("shared", COST))
    if hits:
        judged.append(
            Bound("shared: prompt tokens hit, cost", f"≥ {HITS_BOUND:g}", str(hits), hits.middle >= HITS_BOUND)
        )
    for case, limit in (("shared", TTFT_BOUND), ("apart", APART_BOUND)):
        ratio = spread(_ratios(runs, case, COST))
        if ratio:
            what = f"{case}: mean TTFT, cost / round_robin"
            judged.append(Bound(what, f"≤ {limit:g}", str(ratio), ratio.middle <= limit))
    for at_once in dict.fromkeys(one.at_once for one in added):
        for name, title in (("ttft_ms", "TTFT"), ("itl_ms", "ITL")):
            judged.append(_added_bound(title, at_once, pairs(added, at_once, name)))
    return judged
