"""What a scrape of the agent shows: the replicas by status, the room left, and how often babysitters were started."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from babysitter.agent.landlord import Landlord

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class AgentCollector(Collector):
    """Collects from a landlord when somebody asks."""

    def __init__(self, landlord: "Landlord") -> None:
        self._landlord = landlord

    def page(self) -> bytes:
        """The text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def describe(self) -> list[Metric]:
        """Nothing to describe before there are values; keeps registration from collecting."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        keepers = self._landlord.keepers()
        replicas = GaugeMetricFamily("agent_replicas", "Replicas of this node, by status.", labels=["status"])
        for status, count in sorted(Counter(keeper.info()["status"] for keeper in keepers).items()):
            replicas.add_metric([status], count)
        yield replicas
        counts = self._landlord.counts()
        yield GaugeMetricFamily(
            "agent_replicas_room", "Replicas that could still be made.", counts["capacity"] - counts["replicas_live"]
        )
        yield GaugeMetricFamily(
            "agent_babysitters", "Babysitters that run.", sum(keeper.has_sitter for keeper in keepers)
        )
        yield CounterMetricFamily(
            "agent_babysitter_starts", "Babysitters started, again included.", self._landlord.tally["starts"]
        )
        creates = CounterMetricFamily("agent_creates", "Create calls, by what became of them.", labels=["result"])
        for result in ("made", "repeated", "refused", "no_room"):
            creates.add_metric([result], self._landlord.tally[result])
        yield creates
