"""What a replay's figures say: tables and plots. Nothing is measured here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from statistics import median


@dataclass(frozen=True, slots=True)
class Figures:
    """One policy in one case with one seed; times in seconds of the trace."""

    case: str
    policy: str
    seed: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    hit_share: float
    imbalance: float
    floor_s: float
    best_hit_share: float
    too_late_share: float = 0.0
    """Of requests that waited for more than 1.2 times their wait first come, first served; known offline only."""
    faults: int = 0
    cpu_us: float = 0.0
    """CPU of the router's process tree per request; 0 offline."""


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def medians(found: Sequence[Figures]) -> list[Figures]:
    """One per case and policy, each figure the median over the seeds, in the order of first appearance."""
    groups: dict[tuple[str, str], list[Figures]] = {}
    for one in found:
        groups.setdefault((one.case, one.policy), []).append(one)
    found_middle = []
    for group in groups.values():
        names = (
            "mean_s",
            "p50_s",
            "p90_s",
            "p99_s",
            "hit_share",
            "imbalance",
            "floor_s",
            "best_hit_share",
            "too_late_share",
            "cpu_us",
        )
        middle = {name: median(getattr(one, name) for one in group) for name in names}
        found_middle.append(replace(group[0], **middle, faults=sum(one.faults for one in group)))
    return found_middle


def table(found: Sequence[Figures], baseline: str) -> str:
    """Markdown: one row per case and policy. `baseline` is whom the ratios compare with."""
    lines = [
        (
            "| case | policy | TTFT mean | p50 | p90 | p99 | over the floor | blocks hit | of the most possible "
            f"| imbalance | late by order | mean / {baseline} | CPU µs/request | faults |"
        ),
        (
            "| ---- | ------ | --------: | --: | --: | --: | -------------: | ---------: | -------------------: "
            "| --------: | ------------: | -------: | -------------: | -----: |"
        ),
    ]
    means = {(one.case, one.policy): one.mean_s for one in found}
    for one in found:
        compared = means.get((one.case, baseline))
        lines.append(
            f"| {one.case} | {one.policy} | {one.mean_s:.2f} | {one.p50_s:.2f} | {one.p90_s:.2f} | {one.p99_s:.2f} "
            f"| {one.mean_s - one.floor_s:.2f} | {one.hit_share:.1%} "
            f"| {f'{one.hit_share / one.best_hit_share:.0%}' if one.best_hit_share else '-'} | {one.imbalance:.2f} "
            f"| {one.too_late_share:.1%} | {f'{one.mean_s / compared:.2f}' if compared else '-'} | {f'{one.cpu_us:,.0f}' if one.cpu_us else '-'} "
            f"| {one.faults} |"
        )
    return "\n".join(lines)


COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#bab0ac")
_BAR_H, _GAP, _LEFT, _WIDTH = 14, 10, 150, 760


def bars_svg(found: Sequence[Figures], title: str) -> str:
    """A plot of TTFT over the floor, a group of bars per case, a bar per policy."""
    cases = list(dict.fromkeys(one.case for one in found))
    policies = list(dict.fromkeys(one.policy for one in found))
    values = {(one.case, one.policy): one.mean_s - one.floor_s for one in found}
    # The worst of the worst would flatten all others: longer bars are cut and say their value.
    longest = max(2.2 * median(values.values()), 1e-9)
    span = _WIDTH - _LEFT - 70
    y = 40
    parts = [f'<text x="8" y="20" font-size="14" font-weight="bold">{escape(title)}</text>']
    for number, policy in enumerate(policies):
        at = _LEFT + number * 115
        parts.append(f'<rect x="{at}" y="{y - 9}" width="10" height="10" fill="{_colour(number)}"/>')
        parts.append(f'<text x="{at + 14}" y="{y}">{escape(policy)}</text>')
    y += 14
    for case in cases:
        parts.append(f'<text x="8" y="{y + _BAR_H}">{escape(case)}</text>')
        for number, policy in enumerate(policies):
            value = values.get((case, policy))
            if value is None:
                continue
            width = max(1.0, min(value / longest, 1.0) * span)
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR_H - 2}" fill="{_colour(number)}"/>'
            )
            parts.append(f'<text x="{_LEFT + width + 4:.1f}" y="{y + 10}" font-size="10">{value:.2f} s</text>')
            y += _BAR_H
        y += _GAP
    return _page(y, parts)


def lines_svg(curves: dict[str, Sequence[float]], title: str) -> str:
    """A plot of how many requests had their first token within so many seconds (logarithmic, 0.05 to 50 s)."""
    height, top, low, high = 360, 40, 0.05, 50.0
    from math import log10  # noqa: PLC0415 - used here only

    def x_of(seconds: float) -> float:
        share = log10(max(seconds, low) / low) / log10(high / low)
        return 60 + min(share, 1.0) * (_WIDTH - 90)

    parts = [f'<text x="8" y="20" font-size="14" font-weight="bold">{escape(title)}</text>']
    for tick in (0.1, 0.3, 1, 3, 10, 30):
        parts.append(f'<line x1="{x_of(tick):.0f}" x2="{x_of(tick):.0f}" y1="{top}" y2="{height - 30}" stroke="#ddd"/>')
        parts.append(f'<text x="{x_of(tick) - 10:.0f}" y="{height - 14}">{tick} s</text>')
    for share in (0.0, 0.5, 0.9, 1.0):
        y = height - 30 - share * (height - 30 - top)
        parts.append(f'<line x1="60" x2="{_WIDTH - 30}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
        parts.append(f'<text x="24" y="{y + 4:.0f}">{share:.0%}</text>')
    for number, (name, values) in enumerate(curves.items()):
        points = []
        for step in range(101):
            y = height - 30 - step / 100 * (height - 30 - top)
            points.append(f"{x_of(quantile(values, step / 100)):.1f},{y:.1f}")
        parts.append(f'<polyline fill="none" stroke-width="2" stroke="{_colour(number)}" points="{" ".join(points)}"/>')
        parts.append(
            f'<text x="{_WIDTH - 150}" y="{height - 50 - 14 * number}" fill="{_colour(number)}">{escape(name)}</text>'
        )
    return _page(height, parts)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _page(height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" font-family="sans-serif" '
        f'font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
