"""What a scrape of a babysitter shows: the state of its one replica, restarts, stages, cluster jobs. Made when asked."""

from collections.abc import Iterable, Iterator

from msgspec import UNSET
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from babysitter.lifecycle import ReplicaState
from babysitter.view import View
from common.http.tls_metric import tls_families
from common.wire.replica import ReplicaReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Picture(Collector):
    """One scrape's families."""

    def __init__(self, shown: Iterable[Metric]) -> None:
        self._shown = shown

    def collect(self) -> Iterator[Metric]:
        """prometheus-client: the families."""
        yield from self._shown


def page(shown: Iterable[Metric]) -> bytes:
    """Families in Prometheus' text form."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Picture(shown))
    return generate_latest(registry)


def families(view: View, uptime_s: float, expires_at: float | None = None) -> Iterator[Metric]:
    """The families of one babysitter.

    Args:
        view: The replica now.
        uptime_s: Age of this babysitter, in seconds.
        expires_at: When its certificate ends, in epoch seconds.
    """
    report = view.report
    info = GaugeMetricFamily(
        "svc_babysitter_info", "1; the labels say whose babysitter it is.", labels=["service", "backend"]
    )
    info.add_metric([view.spec.name, view.spec.label], 1)
    yield info
    states = GaugeMetricFamily("svc_babysitter_state", "1 for the state the replica is in.", labels=["state"])
    for state in ReplicaState:
        states.add_metric([state.value], float(state is view.state))
    yield states
    gauges = {
        "svc_babysitter_server_ready": ("1 while requests are welcome.", view.state is ReplicaState.READY),
        "svc_babysitter_server_running": ("1 while the server's process lives.", view.serves),
        "svc_babysitter_stalled": ("1 while a start shows no progress.", report.stalled),
        "svc_babysitter_state_write_failed": (
            "1 while the state file cannot be written.",
            report.state_persist_failed is not None,
        ),
        "svc_babysitter_uptime_seconds": ("Age of this babysitter.", uptime_s),
        "svc_babysitter_incarnation": ("How many babysitters this replica has had.", report.incarnation),
    }
    for name, (text, value) in gauges.items():
        yield GaugeMetricFamily(name, text, value=float(value))
    yield CounterMetricFamily("svc_babysitter_restarts", "Restarts of the server.", value=float(report.restart_count))
    jobs = GaugeMetricFamily("svc_babysitter_jobs", "Cluster jobs of the replica.", labels=["kind"])
    jobs.add_metric(["compile"], len(report.compile_wsjob))
    jobs.add_metric(["execute"], len(report.execute_wsjob))
    yield jobs
    stages = GaugeMetricFamily(
        "svc_babysitter_stage_duration_seconds", "How long a stage of the last deployment took.", labels=["stage"]
    )
    for stage in report.stages:
        stages.add_metric([stage.name], stage.took_s)
    yield stages
    yield from tls_families(expires_at)
    yield from _engine(report)


def _engine(report: ReplicaReport) -> Iterator[Metric]:
    """What the engine tells, under one name for all engines; a family has no sample where it does not."""
    told = (
        (GaugeMetricFamily, "engine_requests_running", "Requests that the engine works on.", report.running),
        (GaugeMetricFamily, "engine_requests_waiting", "Requests in the engine's own queue.", report.waiting),
        (
            GaugeMetricFamily,
            "engine_kv_cache_usage_ratio",
            "How full the engine's KV cache is, from 0 to 1; of several, the fullest.",
            report.kv_cache_usage,
        ),
        (
            CounterMetricFamily,
            "engine_prefix_cache_query_tokens",
            "Prompt tokens that the engine looked for in its prefix cache since it began.",
            report.prefix_query_tokens,
        ),
        (
            CounterMetricFamily,
            "engine_prefix_cache_hit_tokens",
            "Prompt tokens that the engine found in its prefix cache since it began.",
            report.prefix_hit_tokens,
        ),
    )
    for kind, name, text, figure in told:
        family = kind(name, text)
        if figure is not UNSET:
            family.add_metric([], figure)
        yield family
