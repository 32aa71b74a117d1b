"""PURE. What has gone through the router lately: counters sampled now and then become rates and percentiles.

A sample is one row of cumulative counters per endpoint, as the counters has them. The difference of two samples is a
point. An endpoint that is new counts from zero, one that is gone counts no more, so a reused row is never mistaken for
its predecessor's. Percentiles are read from the histograms' buckets by linear interpolation, as Prometheus does.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from common.tokens import Counts, Name, Rows, add
from common.wire.router import KeyTraffic, TrafficPoint
from router.counters import (
    BOUNDS_S,
    CACHED_TOKENS,
    EJECTIONS,
    FIELDS,
    FIRST_BYTE,
    GAP,
    IN_FLIGHT,
    OUTCOMES,
    PROMPT_TOKENS,
    QUEUE_WAIT,
    REQUESTS,
    RETRIES,
    WRITTEN_TOKENS,
    AttemptOutcome,
)

SAMPLE_S = 2.0
SAMPLE_REST_S = 500e-6
"""The same for each replica, where that is more: to read all counters of 10,000 takes 50 ms."""
KEYS_WINDOW_S = 10.0
POINTS_KEPT = 450
"""A quarter of an hour."""
QUANTILES = (0.5, 0.95, 0.99)
FAILED = (
    AttemptOutcome.SERVER_ERROR,
    AttemptOutcome.CONNECT_FAILED,
    AttemptOutcome.DIED,
    AttemptOutcome.TRUNCATED,
    AttemptOutcome.MALFORMED,
    AttemptOutcome.TIMED_OUT,
)
"""Outcomes that are a replica's fault."""
Row = Sequence[int]
"""The counters of one endpoint over all workers, in the order of `router/counters.py`."""


@dataclass(frozen=True, slots=True)
class TrafficSample:
    """All counters at one moment: `at` is epoch seconds for display, `now` monotonic; `queue` is the row of no endpoint."""

    at: float
    now: float
    rows: Mapping[str, Row]
    queue: Row


@dataclass(slots=True)
class TrafficHistory:
    """The last quarter of an hour, oldest point first."""

    points: deque[TrafficPoint] = field(default_factory=lambda: deque(maxlen=POINTS_KEPT))
    rates: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Of the latest point: requests and errors per second, by endpoint id; none for one that was asked nothing."""
    last: TrafficSample | None = None

    def add(self, sample: TrafficSample) -> None:
        """Take a sample; with the one before it makes a point."""
        if self.last is not None and sample.now > self.last.now:
            self._add_point(self.last, sample)
        self.last = sample

    def since(self, at: float) -> list[TrafficPoint]:
        """Points later than `at`."""
        return [point for point in self.points if point.at > at]

    def _add_point(self, before: TrafficSample, after: TrafficSample) -> None:
        seconds = after.now - before.now
        changes = {
            key: _change(old, row)
            for key, row in after.rows.items()
            if row is not (old := before.rows.get(key))  # most of many thousands have nothing to do
        }
        total = [sum(column) for column in zip(*changes.values(), strict=True)] or [0] * FIELDS
        queue = _change(before.queue, after.queue)
        self.rates = {
            key: (_rate(_requests(row), seconds), _rate(_failures(row), seconds)) for key, row in changes.items()
        }
        self.points.append(
            TrafficPoint(
                at=round(after.at, 3),
                requests_s=_rate(_requests(total), seconds),
                errors_s=_rate(_failures(total), seconds),
                retries_s=_rate(total[RETRIES], seconds),
                ejections=total[EJECTIONS],
                in_flight=sum(row[IN_FLIGHT] for row in after.rows.values()),
                first_byte_s=percentiles(total, FIRST_BYTE),
                gap_s=percentiles(total, GAP),
                queue_s=percentiles(queue, QUEUE_WAIT),
                prompt_tokens_s=_rate(total[PROMPT_TOKENS], seconds),
                cached_tokens_s=_rate(total[CACHED_TOKENS], seconds),
                completion_tokens_s=_rate(total[WRITTEN_TOKENS], seconds),
            )
        )


class KeyRates:
    """What each key used of late, over `KEYS_WINDOW_S`: requests count at their end, in lumps."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, dict[str, Counts]]] = deque()

    def add(self, now: float, by_key: Mapping[Name, Counts]) -> None:
        """Take what was used since the router began."""
        sums: Rows = {}
        for (key, _, _), counts in by_key.items():
            add(sums, (key, "", ""), counts)
        self._samples.append((now, {key: counts for (key, _, _), counts in sums.items()}))
        while len(self._samples) > 2 and self._samples[1][0] <= now - KEYS_WINDOW_S:  # noqa: PLR2004 - a difference takes two
            self._samples.popleft()

    def rates(self) -> list[KeyTraffic]:
        """Per second, of keys that used anything, those with most tokens first."""
        if not self._samples:
            return []
        (began, before), (now, after) = self._samples[0], self._samples[-1]
        seconds = max(now - began, 1e-9)
        none = (0, 0, 0, 0, 0, 0)
        changes = {
            key: [new - old for new, old in zip(counts, before.get(key, none), strict=True)]
            for key, counts in after.items()
        }
        rates = [
            KeyTraffic(
                key=key,
                requests_s=_rate(change[0], seconds),
                prompt_tokens_s=_rate(change[1], seconds),
                completion_tokens_s=_rate(change[3], seconds),
            )
            for key, change in changes.items()
            if change[0]
        ]
        return sorted(rates, key=lambda one: (-one.prompt_tokens_s - one.completion_tokens_s, one.key))


def percentiles(row: Row, histogram: int) -> list[float] | None:
    """p50, p95 and p99 in seconds of one histogram of a row; None when nothing was observed."""
    counts = row[histogram : histogram + len(BOUNDS_S) + 1]
    if not sum(counts):
        return None
    return [round(quantile(counts, share), 6) for share in QUANTILES]


def quantile(counts: Sequence[int], share: float) -> float:
    """The value below which `share` of the observations lie, in seconds; above the last bound it is that bound."""
    rank = share * sum(counts)
    lower = below = 0.0
    for bound, reached in zip(BOUNDS_S, accumulate(counts), strict=False):
        if reached >= rank:
            return lower + (bound - lower) * (rank - below) / (reached - below) if reached > below else lower
        lower, below = bound, reached
    return BOUNDS_S[-1]


def _requests(row: Row) -> int:
    """Requests, not attempts."""
    return row[REQUESTS] - row[RETRIES]


def _failures(row: Row) -> int:
    return sum(row[OUTCOMES + outcome] for outcome in FAILED)


def _rate(count: int, seconds: float) -> float:
    return round(max(0, count) / seconds, 3)


def _change(before: Row | None, after: Row) -> Row:
    return after if before is None else [max(0, new - old) for new, old in zip(after, before, strict=True)]
