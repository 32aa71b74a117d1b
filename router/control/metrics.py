"""The router's metrics, merged over workers by reading the shared counters; rendered by prometheus-client.

A replica with several models is labelled `several`: its counters are kept per replica, and a label per model asked for
would let clients grow the page.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector, CollectorRegistry

from common.http.tls import Tls
from common.http.tls_metric import tls_families
from router.accounts import Accounts
from router.counters import (
    BOUNDS_S,
    BYTES_IN,
    BYTES_OUT,
    CACHED_TOKENS,
    DURATION,
    EJECTIONS,
    ESTIMATED_TOKENS,
    FINISHED,
    FIRST_BYTE,
    GAP,
    HAND_OVERS,
    HEDGES,
    HEDGES_WON,
    IN_FLIGHT,
    OUTCOMES,
    PROMPT_TOKENS,
    QUEUE_WAIT,
    REASONING_TOKENS,
    REASONS,
    RESCUES,
    RESCUES_FAILED,
    RETRIES,
    STUCK,
    WRITTEN_TOKENS,
    AttemptOutcome,
    SharedCounters,
)
from router.demand import ColdTotals, Deployments
from router.model import Eligibility, Replica
from router.outlier import Reason

LABELS = ("model", "replica")
ANONYMOUS = "anonymous"
"""Who shows no key."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_COUNTERS = (
    ("svc_router_retries", "Attempts that were not a request's first.", RETRIES),
    ("svc_router_ejections", "Times a replica was set aside because of its requests.", EJECTIONS),
    ("svc_router_request_bytes", "Bytes of request bodies sent to replicas.", BYTES_IN),
    ("svc_router_response_bytes", "Bytes of answers sent to clients.", BYTES_OUT),
    ("svc_router_rescues", "Streams that broke off at the replica and went on at another.", RESCUES),
    ("svc_router_rescues_failed", "Streams of models with rescue that broke off and could not go on.", RESCUES_FAILED),
    ("svc_router_hand_overs", "Streams that went on at another replica because this one leaves.", HAND_OVERS),
    ("svc_router_hedges", "Second copies of requests sent to the replica.", HEDGES),
    ("svc_router_hedges_won", "Second copies whose first byte came before the first copy's.", HEDGES_WON),
)
_TOKENS = (
    ("prompt", PROMPT_TOKENS),
    ("cached", CACHED_TOKENS),
    ("completion", WRITTEN_TOKENS),
    ("reasoning", REASONING_TOKENS),
    ("estimated", ESTIMATED_TOKENS),
)
_HISTOGRAMS = (
    ("svc_router_time_to_first_byte_seconds", "From the whole request to the answer's first byte.", FIRST_BYTE),
    ("svc_router_inter_chunk_seconds", "Between two reads of a stream.", GAP),
    ("svc_router_request_duration_seconds", "From the whole request to the answer's last byte.", DURATION),
)


class MetricsSource(Protocol):
    """What the metrics are read from."""

    registry_error: str | None
    deployments: Deployments
    accounts: Accounts
    own_tls: Tls

    def replicas(self) -> Sequence[Replica]:
        """All replicas known now."""
        ...

    def connections(self) -> int:
        """Client connections."""
        ...

    def unreachable(self) -> Mapping[str, tuple[int, str]]:
        """By name: replicas that several requests in a row could not reach, how many, and why."""
        ...

    def workers_alive(self) -> int:
        """Workers that serve."""
        ...

    def limits_alone(self) -> bool:
        """No registry answers for its keys' limits: this router goes on with its share."""
        ...

    def left_out(self) -> int:
        """Replicas known that have no place in the table."""
        ...


class RouterCollector(Collector):
    """Reads everything at each scrape.

    Args:
        source: The master.
        counters: The counters.
        only: The one key of which is told; None: all.
    """

    def __init__(self, source: MetricsSource, counters: SharedCounters, only: str | None = None) -> None:
        self._only = only
        self._source = source
        self._counters = counters

    def page(self) -> bytes:
        """The page in Prometheus' text form."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """prometheus-client: the families."""
        replicas = self._source.replicas()
        yield from self._fleet(replicas)
        yield from tls_families(self._source.own_tls.material.expires_at)
        requests = CounterMetricFamily(
            "svc_router_requests", "Attempts that ended, by how they did.", labels=[*LABELS, "outcome"]
        )
        in_flight = GaugeMetricFamily("svc_router_in_flight", "Requests at a replica now.", labels=LABELS)
        for replica in replicas:
            labels = _labels(replica)
            in_flight.add_metric(labels, self._counters.total(replica.slot, IN_FLIGHT))
            for outcome in AttemptOutcome:
                count = self._counters.total(replica.slot, OUTCOMES + outcome)
                requests.add_metric([*labels, outcome.name.lower()], count)
        yield requests
        yield in_flight
        set_aside = GaugeMetricFamily(
            "svc_router_set_aside", "1 while a replica is set aside, by why.", labels=[*LABELS, "reason"]
        )
        for replica in replicas:
            why = why_set_aside(self._counters, replica.slot)
            if why is not None:
                set_aside.add_metric([*_labels(replica), why.name.lower()], 1.0)
        yield set_aside
        unreachable = self._source.unreachable()
        unreached = GaugeMetricFamily(
            "svc_router_unreached_requests",
            "Latest requests in a row that could not reach the replica, whatever its probes say; 0 below three.",
            labels=LABELS,
        )
        for replica in replicas:
            unreached.add_metric(_labels(replica), unreachable.get(replica.name, (0, ""))[0])
        yield unreached
        for name, text, cell in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=LABELS)
            for replica in replicas:
                counter.add_metric(_labels(replica), self._counters.total(replica.slot, cell))
            yield counter
        for name, text, cell in _HISTOGRAMS:
            family = HistogramMetricFamily(name, text, labels=LABELS)
            for replica in replicas:
                self._add(family, _labels(replica), replica.slot, cell)
            yield family
        yield from self._tokens(replicas)
        waits = HistogramMetricFamily(
            "svc_router_queue_wait_seconds", "Waited for a replica with room, or in the line of a busy one.", labels=()
        )
        self._add(waits, [], self._counters.shape.slots, QUEUE_WAIT)
        yield waits
        yield from self._cold()
        yield from self._keys()

    def _tokens(self, replicas: Sequence[Replica]) -> Iterator[Metric]:
        tokens = CounterMetricFamily(
            "svc_router_tokens",
            "Tokens, as answers' usage tells: of prompts, of these from the cache, of answers, of these reasoning; and those of "
            "answers that are only estimated, a token for each piece, as their usage was not told.",
            labels=[*LABELS, "kind"],
        )
        finished = CounterMetricFamily(
            "svc_router_finished", "Answers that told why they ended, by that.", labels=[*LABELS, "reason"]
        )
        for replica in replicas:
            labels = _labels(replica)
            for kind, cell in _TOKENS:
                tokens.add_metric([*labels, kind], self._counters.total(replica.slot, cell))
            for number, reason in enumerate(REASONS):
                finished.add_metric([*labels, reason], self._counters.total(replica.slot, FINISHED + number))
        yield from (tokens, finished)

    def _keys(self) -> Iterator[Metric]:
        """What was used, by key and model."""
        used = CounterMetricFamily(
            "svc_router_key_tokens",
            "Tokens by API key and model, of requests that are over; kinds as in svc_router_tokens. What has no room is `(other)`.",
            labels=["key", "model", "kind"],
        )
        requests = CounterMetricFamily(
            "svc_router_key_requests", "Requests answered, by API key and model.", labels=["key", "model"]
        )
        for (key, model, _), (count, *kinds) in self._source.accounts.by_key.items():
            if self._only not in (None, key):
                continue
            labels = [key or ANONYMOUS, model or "none"]
            requests.add_metric(labels, count)
            for (kind, _cell), tokens in zip(_TOKENS, kinds, strict=True):
                used.add_metric([*labels, kind], tokens)
        yield from (requests, used)

    def _cold(self) -> Iterator[Metric]:
        """Of the deployments that a request for their model was held for, or refused."""
        deployments = self._source.deployments
        waiting = deployments.waiting()
        held = GaugeMetricFamily(
            "svc_router_deployment_waiting", "Requests that wait for a deployment's model now.", labels=["deployment"]
        )
        waited = SummaryMetricFamily(
            "svc_router_cold_wait_seconds", "Waited for a deployment's first replica to start.", labels=["deployment"]
        )
        refused = CounterMetricFamily(
            "svc_router_cold_refused",
            "Requests that were told that a deployment's model is not there yet, or cannot be started.",
            labels=["deployment"],
        )
        for model, state in deployments.states.items():
            totals = deployments.totals.get(model, ColdTotals())
            held.add_metric([state.deployment], waiting.get(model, 0))
            waited.add_metric([state.deployment], totals.served, totals.waited_s)
            refused.add_metric([state.deployment], totals.refused)
        yield from (held, waited, refused)

    def _fleet(self, replicas: Sequence[Replica]) -> Iterator[Metric]:
        standings = GaugeMetricFamily("svc_router_replicas", "Replicas by standing.", labels=["standing"])
        for eligibility in Eligibility:
            standings.add_metric([eligibility.value], sum(replica.eligibility is eligibility for replica in replicas))
        yield standings
        yield GaugeMetricFamily(
            "svc_router_replicas_left_out",
            "Replicas beyond max_endpoints, which get nothing.",
            value=self._source.left_out(),
        )
        up = self._source.registry_error is None
        yield GaugeMetricFamily("svc_router_registry_up", "1 while the registry is followed.", value=float(up))
        yield GaugeMetricFamily(
            "svc_router_limits_alone",
            "1 while no registry answers for its keys' limits, and the router lends its own share of them.",
            value=float(self._source.limits_alone()),
        )
        yield GaugeMetricFamily("svc_router_workers", "Workers that serve.", value=self._source.workers_alive())
        yield GaugeMetricFamily("svc_router_connections", "Client connections.", value=self._source.connections())

    def _add(self, family: HistogramMetricFamily, labels: Sequence[str], slot: int, cell: int) -> None:
        counts, total_s = self._counters.histogram(slot, cell)
        bounds = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
        family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total_s)


def why_set_aside(counters: SharedCounters, slot: int) -> Reason | None:
    """Why a replica gets no requests now, though it may be healthy by its probes; None when it does."""
    if counters.total(slot, STUCK):
        return Reason.SILENT
    why = counters.ejected_why(slot)  # none when the master forgave while a worker wrote
    return Reason(why) if why and counters.ejected_until_s(slot) > time.monotonic() else None


def _labels(replica: Replica) -> list[str]:
    models = replica.models
    return [models[0] if len(models) == 1 else "several" if models else "none", replica.name]
