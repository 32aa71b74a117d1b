"""What a scrape of an agent shows: this node's replicas by status, and the room that is left. Made when asked."""

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from common.wire.replica import NodeCounts
from common.wire.words import ReplicaStatus


def families(node: str, statuses: Iterable[ReplicaStatus], counts: NodeCounts, silent: int) -> Iterator[Metric]:
    """The families.

    Args:
        node: This node's name.
        statuses: Of every replica.
        counts: The manager's.
        silent: Replicas whose babysitter does not run.
    """
    info = GaugeMetricFamily("svc_agent_info", "1; the label says which node it is.", labels=["node"])
    info.add_metric([node], 1)
    yield info
    counted = Counter(statuses)
    replicas = GaugeMetricFamily("svc_agent_replicas", "Replicas of the node, by status.", labels=["status"])
    for status in ReplicaStatus:
        if status is not ReplicaStatus.UNKNOWN:  # which the agent shows as pending
            replicas.add_metric([status], counted[status])
    yield replicas
    yield GaugeMetricFamily("svc_agent_replicas_live", "Replicas that hold ports.", value=counts.replicas_live)
    yield GaugeMetricFamily("svc_agent_capacity", "Replicas that the node may hold at once.", value=counts.capacity)
    yield GaugeMetricFamily(
        "svc_agent_replicas_without_babysitter", "Replicas whose babysitter does not run.", value=silent
    )
