"""What a scrape shows: counted as plain integers while serving, made into metrics when somebody asks."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.http.tls import Tls
from common.http.tls_metric import tls_families
from registry.core.catalogue import Catalogue, Revised
from registry.core.model import Upsert
from registry.core.writer import Writer
from registry.deployments.tally import Tally
from registry.views.census import Census, census
from registry.views.watch import WatchHub


class Metrics(Collector):
    """Collects from the parts of one registry.

    `answers` counts by route and status; the middleware adds to it. `removals` counts records that went, by reason.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(
        self,
        catalogue: Catalogue,
        writer: Writer,
        hub: WatchHub,
        routers: Iterable[object],
        tally: Tally | None = None,
        *,
        tls: Tls | None = None,
    ) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        self.removals: Counter[str] = Counter(deregistered=0, expired=0, replaced=0)
        self._catalogue = catalogue
        self._routers = routers
        self._tally = tally or Tally()
        self._tls = tls or Tls()
        self._writer = writer
        self._hub = hub
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._census = Census()

    def notice(self, revised: Sequence[Revised]) -> None:
        """A listener of the writer."""
        for item in revised:
            if not isinstance(item.change, Upsert):
                self.removals[item.change.reason] += 1

    async def scrape(self) -> bytes:
        """The text format."""
        self._census = await census(self._catalogue)
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing to describe before there are values; keeps registration from collecting."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        services = GaugeMetricFamily("registry_services", "Records, by status.", labels=["status"])
        statuses: Counter[str] = Counter()
        for status, count in self._census.statuses.items():
            statuses[_status(status)] += count
        for status, count in sorted(statuses.items()):
            services.add_metric([status], count)
        yield services
        gauges = {
            "registry_services_healthy": ("Records that run and whose lease holds.", self._catalogue.healthy),
            "registry_services_stale": ("Records whose lease ended.", self._census.stale),
            "registry_services_suspect": ("Records kept by self-preservation.", self._census.suspect),
            "registry_self_preservation": (
                "1 while expiry is held back.",
                self._catalogue.preserving_since is not None,
            ),
            "registry_store_away": ("1 while a shared store cannot be reached.", self._writer.away is not None),
            "registry_unwritten": ("Records whose last change the store has not got.", len(self._writer.unwritten)),
            "registry_revision": ("Revision of the last change.", self._catalogue.revision),
            "registry_routers": ("Routers that watch this registry.", sum(1 for _ in self._routers)),
            "registry_watchers": ("Open watches and long polls.", len(self._hub)),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=float(value))
        yield CounterMetricFamily("registry_watch_resyncs", "Slow watchers sent a snapshot.", value=self._hub.resyncs)
        removals = CounterMetricFamily("registry_removals", "Records that went, by reason.", labels=["reason"])
        for reason, count in self.removals.items():
            removals.add_metric([reason], count)
        yield removals
        answers = CounterMetricFamily("registry_http_answers", "Answers given.", labels=["route", "status"])
        for (route, code), count in sorted(self.answers.items()):
            answers.add_metric([route, str(code)], count)
        yield answers
        yield from tls_families(self._tls.material.expires_at)
        yield from deployment_families(self._tally)


def deployment_families(tally: Tally) -> Iterator[Metric]:
    """Of deployments; a registry that does not lead knows none."""
    wanted = GaugeMetricFamily("deployment_wanted", "Replicas that should run now.", labels=["deployment"])
    ready = GaugeMetricFamily("deployment_ready", "Replicas that take requests.", labels=["deployment"])
    phases = GaugeMetricFamily("deployment_phase", "1 for the phase it is in.", labels=["deployment", "phase"])
    for name, status in sorted(tally.statuses.items()):
        wanted.add_metric([name], status.wanted)
        ready.add_metric([name], status.ready)
        phases.add_metric([name, status.phase], 1)
    yield wanted
    yield ready
    yield phases
    counters = {
        "deployment_cold_starts": (
            "Starts of models that had no replica, for a request that waited.",
            tally.cold_starts,
        ),
        "deployment_starts": ("Starts that ended with a replica ready.", tally.starts),
        "deployment_start_seconds": ("How long those took, all together.", tally.start_s),
        "deployment_waited_seconds": ("Request seconds spent waiting for models without a replica.", tally.waited_s),
    }
    for name, (text, value) in counters.items():
        yield CounterMetricFamily(name, text, value=float(value))
    evictions = CounterMetricFamily("deployment_evictions", "Replicas told to leave, by reason.", labels=["reason"])
    for reason, count in tally.evictions.items():
        evictions.add_metric([reason], count)
    yield evictions


KNOWN_STATUSES = frozenset(
    {"running", "draining", "stopped", "stopping", "starting", "pending", "creating", "waiting_for_ready", "unhealthy"}
    | {"asleep", "failed", "error", "unknown"}
)


def _status(text: str) -> str:
    """A label from a bounded set: clients choose statuses."""
    return text if text in KNOWN_STATUSES else "other"
