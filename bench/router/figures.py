"""What the comparison's figures say: medians, ratios of pairs, bounds and tables. Nothing is measured here.

A pair is two targets in the same repetition, minutes apart at most: their ratio holds when the machine's speed drifts,
which a figure alone does not.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import Any

CONFIDENCE = 0.95
"""The usual one."""
DIRECT, BEFORE, OURS, NGINX, SGLANG = "direct", "before", "ours", "nginx", "sglang"


@dataclass(frozen=True, slots=True)
class Sample:
    """One target under one workload in one repetition. Times are medians over the run's requests."""

    target: str
    workload: str
    repetition: int
    requests: int
    cpu_us: float
    """CPU of the target's process tree per request, user and system."""
    system_us: float
    per_second: float
    core_share: float
    """Share of one core that the target used."""
    duration_us: float
    duration_p99_us: float
    first_byte_us: float
    body_bytes: float
    faults: int
    """Errors, answers other than 200, and requests without an end."""
    memory_mb: float


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some figures, and their extremes."""

    middle: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f}-{self.high:.2f}, n={self.count})"


def spread(values: Iterable[float]) -> Spread | None:
    """The spread of `values`; None when there are none."""
    known = sorted(values)
    return Spread(median(known), known[0], known[-1], len(known)) if known else None


Figure = Callable[[Sample], float]


def by_repetition(samples: Iterable[Sample], workload: str, target: str, figure: Figure) -> dict[int, float]:
    """`figure` of one target under one workload, by repetition."""
    return {s.repetition: figure(s) for s in samples if (s.workload, s.target) == (workload, target)}


def ratios(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    """Ours over theirs, in each repetition that has both (and theirs above zero)."""
    return [ours[turn] / theirs[turn] for turn in sorted(ours.keys() & theirs.keys()) if theirs[turn] > 0]


def added(of: dict[int, float], direct: dict[int, float]) -> dict[int, float]:
    """What a target adds to going direct, in each repetition that has both."""
    return {turn: of[turn] - direct[turn] for turn in sorted(of.keys() & direct.keys())}


def cpu_ratio(samples: Sequence[Sample], workload: str, target: str, peer: str) -> Spread | None:
    """CPU per request of `target` over that of `peer`."""
    return spread(ratios(*(by_repetition(samples, workload, name, lambda s: s.cpu_us) for name in (target, peer))))


def added_us(samples: Sequence[Sample], workload: str, target: str, figure: Figure) -> dict[int, float]:
    """Microseconds that `target` adds to going direct, by repetition."""
    return added(*(by_repetition(samples, workload, name, figure) for name in (target, DIRECT)))


@dataclass(frozen=True, slots=True)
class Streams:
    """A run of many open streams through one worker."""

    target: str
    asked: int
    ended: int
    faults: int
    chunks: int
    interval_s: float
    kb_per_stream: float
    cpu_us_per_chunk: float
    silence_p50_s: float
    silence_max_s: float
    """The longest wait of any stream between two pieces."""
    first_byte_max_s: float

    @property
    def starved(self) -> bool:
        """A stream did not end, or once waited for the time of three chunks."""
        return self.ended < self.asked or self.faults > 0 or self.silence_max_s > 3 * self.interval_s


@dataclass(frozen=True, slots=True)
class Bound:
    """One bound, what was measured, and whether it holds (None: not measured)."""

    what: str
    limit: str
    measured: str
    holds: bool | None


CPU_BOUNDS = (
    ("W1", "w1", SGLANG, 0.40),
    ("W1", "w1", NGINX, 2.2),
    ("W2", "w2", SGLANG, 0.90),
    ("W2", "w2", NGINX, 1.35),
    ("W3", "w3", SGLANG, 0.55),
)
LATENCY_BOUND = 0.5
FIRST_BYTE_BOUND_US = 1000.0
"""What counts as no added wait before the first byte: so much more than nginx adds (sglang-router adds some 38 ms)."""
STREAM_BOUND_KB = 30.0


def bounds(samples: Sequence[Sample], streams: Streams | None) -> list[Bound]:
    """Every bound of the router, judged by the median of the pairs."""
    judged = []
    for title, workload, peer, limit in CPU_BOUNDS:
        found = cpu_ratio(samples, workload, OURS, peer)
        judged.append(_below(f"{title}: CPU per request, ours / {peer}", limit, found))
    one = [added_us(samples, "w1c1", name, lambda s: s.duration_us) for name in (OURS, SGLANG)]
    judged.append(_below("one client: added p50, ours / sglang", LATENCY_BOUND, spread(ratios(*one))))
    first = [by_repetition(samples, "w2", name, lambda s: s.first_byte_us) for name in (OURS, NGINX)]
    waited = spread(added(*first).values())
    judged.append(_below("W2: p50 of the first byte, ours - nginx, µs", FIRST_BYTE_BOUND_US, waited))
    if streams is not None:
        kb = streams.kb_per_stream
        judged.append(Bound(_streams_title(streams, "KB each"), "≤ 30", f"{kb:.1f}", kb <= STREAM_BOUND_KB))
        said = f"{streams.ended:,} ended, longest wait {streams.silence_max_s:.2f} s"
        judged.append(Bound(_streams_title(streams, "none starved"), "0", said, not streams.starved))
    return judged


def _streams_title(streams: Streams, what: str) -> str:
    return f"{streams.asked:,} open streams in one worker: {what}"


def _below(what: str, limit: float, found: Spread | None) -> Bound:
    if found is None:
        return Bound(what, f"≤ {limit:g}", "not measured", None)
    return Bound(what, f"≤ {limit:g}", str(found), found.middle <= limit)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right, padded so that it reads as text."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = ["-" * max(width, 3) for width in widths]
    rule[1:] = [dashes[:-1] + ":" for dashes in rule[1:]]

    def drawn(line: Sequence[str]) -> str:
        pads = (str.ljust, *[str.rjust] * (len(widths) - 1))
        return (
            "| "
            + " | ".join(pad(cell, max(width, 3)) for pad, cell, width in zip(pads, line, widths, strict=True))
            + " |"
        )

    return "\n".join([drawn(lines[0]), drawn(rule), *map(drawn, lines[1:])])


COST_HEADER = (
    "target", "CPU µs/request", "lowest-highest", "of it system", "/ nginx", "/ sglang", "requests/s", "core",
    "added p50 ms", "added first byte ms", "MB", "faults",
)  # fmt: skip


def cost_rows(samples: Sequence[Sample], workload: str, targets: Sequence[str]) -> list[list[str]]:
    """One row per target that was measured under `workload`; ratios are medians of the pairs."""
    rows = []
    for target in targets:
        mine = [s for s in samples if (s.workload, s.target) == (workload, target)]
        if not mine:
            continue
        cpu = [s.cpu_us for s in mine]
        to_peer = [cpu_ratio(samples, workload, target, peer) for peer in (NGINX, SGLANG)]
        waits = [
            spread(added_us(samples, workload, target, figure).values())
            for figure in (lambda s: s.duration_us, lambda s: s.first_byte_us)
        ]
        rows.append(
            [
                target,
                f"{median(cpu):,.1f}",
                f"{min(cpu):,.0f}-{max(cpu):,.0f}",
                f"{median(s.system_us for s in mine):,.1f}",
                *(f"{ratio.middle:.2f}" if ratio and target != DIRECT else "" for ratio in to_peer),
                f"{median(s.per_second for s in mine):,.0f}",
                f"{median(s.core_share for s in mine):.0%}",
                *(f"{wait.middle / 1e3:.3f}" if wait and target != DIRECT else "" for wait in waits),
                f"{median(s.memory_mb for s in mine):.0f}",
                str(sum(s.faults for s in mine)),
            ]
        )
    return rows


def bound_table(judged: Sequence[Bound]) -> str:
    """The bounds as a table."""
    words = {True: "holds", False: "MISSED", None: "-"}
    rows = [(b.what, b.limit, b.measured, words[b.holds]) for b in judged]
    return table(("bound", "limit", "measured (lowest-highest, pairs)", ""), rows)


def before_lines(samples: Sequence[Sample], workloads: Sequence[str]) -> list[str]:
    """CPU per request now and before, pair by pair, with the sign test's interval; nothing where `before` was not asked."""
    told = []
    for workload in workloads:
        pairs = ratios(*(by_repetition(samples, workload, name, lambda s: s.cpu_us) for name in (OURS, BEFORE)))
        if pairs:
            within = median_within(pairs)
            words = f", 95 % {within[0]:.3f}-{within[1]:.3f}" if within else ""
            told += ["", f"{workload}: CPU per request, ours / before: {median(pairs):.3f}{words}, {len(pairs)} pairs"]
    return told


def median_within(values: Sequence[float]) -> tuple[float, float] | None:
    """Where the median of all such values lies with 95 % confidence; None for fewer than six, which cannot tell.

    The narrowest two of the sorted values, equally far from both ends, with so many chances in 2^n that they hold the
    median between them: the sign test's interval, right for any distribution.
    """
    ordered, count = sorted(values), len(values)
    found = None
    outside = 0
    for below in range(count // 2):
        outside += comb(count, below)
        if 1 - 2 * outside / 2**count < CONFIDENCE:
            break
        found = ordered[below], ordered[count - 1 - below]
    return found


def odd_bodies(samples: Sequence[Sample]) -> list[str]:
    """Targets whose answers have another size than the backend's own: they changed them, or did less work."""
    told = []
    for workload in dict.fromkeys(s.workload for s in samples):
        sizes: dict[str, Any] = {
            s.target: round(s.body_bytes, 1) for s in samples if s.workload == workload and s.requests
        }
        expected = sizes.get(DIRECT)
        told += [
            f"{workload}: answers through {target} have {size} bytes, direct ones {expected}"
            for target, size in sizes.items()
            if expected is not None and size != expected
        ]
    return told
