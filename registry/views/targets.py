"""What Prometheus should scrape: the fleet as its HTTP service discovery wants it. PURE.

Routers and babysitters of ours (their records have an instance id) have `/metrics` at their own address. A server or a
node's agent is scraped when its record says where: `metadata.metrics_path`.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from msgspec import UNSET

from common.wire.address import authority
from common.wire.hints import hints_of
from common.wire.registry import Peer, TargetGroup
from common.wire.words import RecordKind
from registry.core.model import Instance

JOBS = {RecordKind.AGENT: "agent", RecordKind.SERVER: "server"}
"""`metadata.type` to Prometheus' job; every other record of ours is a babysitter's, whose type is its backend's name."""
PATH_LIMIT = 256


def targets(instances: Iterable[Instance], routers: Iterable[Peer], own: str) -> list[TargetGroup]:
    """Target groups, this registry's first.

    Args:
        instances: The records.
        routers: Those that watch this registry.
        own: `host:port` under which the caller reached this registry.
    """
    groups = [TargetGroup(targets=[own], labels={"job": "registry", "service": "registry"})]
    groups += [_router(peer) for peer in routers]
    return groups + [
        TargetGroup(targets=[authority(instance.registration.host, instance.registration.port)], labels=labels)
        for instance in instances
        if (labels := _labels(instance)) is not None
    ]


def _router(peer: Peer) -> TargetGroup:
    parts = urlsplit(peer.url)
    labels = {"job": "router", "service": peer.name, "node": parts.hostname or ""}
    if parts.scheme == "https":
        labels["__scheme__"] = "https"
    return TargetGroup(targets=[parts.netloc], labels=labels)


def _labels(instance: Instance) -> dict[str, str] | None:
    """The labels of one target, or None for what has no metrics that we know of."""
    registration = instance.registration
    labels = {"service": registration.name, "node": registration.hostname or registration.host}
    if registration.url.startswith("https:"):
        labels["__scheme__"] = "https"
    kind = instance.kind or ""
    path = hints_of(registration.metadata).metrics_path
    if path is not None and path.startswith("/") and len(path) <= PATH_LIMIT:
        labels["__metrics_path__"] = path
    elif registration.instance_id is UNSET or kind in JOBS:
        return None
    return {**labels, "job": JOBS.get(kind, "babysitter")}
