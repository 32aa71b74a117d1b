"""PURE. The router's counters between two looks: requests, errors, tokens, and time to the first byte."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

NO_ERROR = frozenset({"ok", "client_error", "client_gone", "busy"})
"""Outcomes that are no fault of the server."""
REQUESTS, IN_FLIGHT = "svc_router_requests_total", "svc_router_in_flight"
TOKENS, FIRST_BYTE = "svc_router_tokens_total", "svc_router_time_to_first_byte_seconds_bucket"
_NEEDED = tuple(f"{name}{{" for name in (REQUESTS, IN_FLIGHT, TOKENS, FIRST_BYTE))
"""Beginnings of the lines to read: with 500 replicas the page has 40,000, and these are a third."""


@dataclass(slots=True)
class Counters:
    """One replica's counters at one moment; `first_byte` holds cumulative counts by upper bound in seconds."""

    requests: float = 0.0
    errors: float = 0.0
    tokens: float = 0.0
    in_flight: float = 0.0
    first_byte: dict[float, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CounterSample:
    """All replicas' counters at `at`, seconds of one monotonic clock."""

    at: float
    replicas: Mapping[str, Counters]


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two samples, per second; times to the first byte in seconds, None without requests."""

    requests: float = 0.0
    errors: float = 0.0
    tokens: float = 0.0
    in_flight: int = 0
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None


def read_metrics(text: str, at: float) -> CounterSample:
    """A sample from the router's `/metrics`.

    Raises:
        ValueError: It is no metrics page.
    """
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - TAB waits for imports

    by_replica: dict[str, Counters] = {}
    needed = "\n".join(line for line in text.splitlines() if line.startswith(_NEEDED))
    for family in text_string_to_metric_families(needed + "\n"):
        for sample in family.samples:
            counters = by_replica.setdefault(sample.labels.get("replica", ""), Counters())
            if sample.name == REQUESTS:
                counters.requests += sample.value
                counters.errors += sample.value if sample.labels.get("outcome") not in NO_ERROR else 0.0
            elif sample.name == IN_FLIGHT:
                counters.in_flight += sample.value
            elif sample.name == TOKENS and sample.labels["kind"] == "completion":
                counters.tokens += sample.value
            elif sample.name == FIRST_BYTE:
                bound = float(sample.labels["le"])
                counters.first_byte[bound] = counters.first_byte.get(bound, 0.0) + sample.value
    return CounterSample(at, by_replica)


def rates(before: CounterSample, after: CounterSample) -> dict[str, Rates]:
    """Each replica's rates; a counter that went back (the router was restarted) counts from nought."""
    took_s = max(after.at - before.at, 1e-9)
    return {
        name: _rates(before.replicas.get(name, Counters()), counters, took_s)
        for name, counters in after.replicas.items()
    }


def total(before: CounterSample, after: CounterSample) -> Rates:
    """All replicas together."""
    return _rates(_sum(before.replicas.values()), _sum(after.replicas.values()), max(after.at - before.at, 1e-9))


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """The value below which `share` of the observations lie, as Prometheus reckons it: straight within a bucket.

    `buckets` are (upper bound, cumulative count) in rising order; the last bound may be infinite. None without
    observations; the highest finite bound for what lies beyond it.
    """
    count = buckets[-1][1] if buckets else 0.0
    if count <= 0:
        return None
    rank = share * count
    for (low, below), (high, reached) in pairwise([(0.0, 0.0), *buckets]):
        if reached >= rank:
            if high == float("inf"):
                return low
            return low + (high - low) * (rank - below) / max(reached - below, 1e-9)
    return None


def _rates(before: Counters, after: Counters, took_s: float) -> Rates:
    buckets = [
        (bound, _grown(before.first_byte.get(bound, 0.0), count)) for bound, count in sorted(after.first_byte.items())
    ]
    return Rates(
        requests=_grown(before.requests, after.requests) / took_s,
        errors=_grown(before.errors, after.errors) / took_s,
        tokens=_grown(before.tokens, after.tokens) / took_s,
        in_flight=round(after.in_flight),
        ttft_p50_s=quantile(buckets, 0.5),
        ttft_p95_s=quantile(buckets, 0.95),
    )


def _grown(before: float, after: float) -> float:
    return after - before if after >= before else after


def _sum(all_of: Iterable[Counters]) -> Counters:
    made = Counters()
    for one in all_of:
        made.requests += one.requests
        made.errors += one.errors
        made.tokens += one.tokens
        made.in_flight += one.in_flight
        for bound, count in one.first_byte.items():
            made.first_byte[bound] = made.first_byte.get(bound, 0.0) + count
    return made
