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


def watching(routers: Iterable[Peer], own: str) -> list[TargetGroup]:
    """The groups of this registry, reached by the caller at `own` (`host:port`), and of the routers that watch it."""
    return [TargetGroup(targets=[own], labels={"job": "registry", "service": "registry"}), *map(_router, routers)]


def target(instance: Instance) -> TargetGroup | None:
    """The group of one record, or None for what has no metrics that we know of."""
    labels = _labels(instance)
    if labels is None:
        return None
    registration = instance.registration
    return TargetGroup(targets=[authority(registration.host, registration.port)], labels=labels)


def _router(peer: Peer) -> TargetGroup:
    parts = urlsplit(peer.url)
    labels = {"job": "router", "service": peer.name, "node": parts.hostname or ""}
    if parts.scheme == "https":
        labels["__scheme__"] = "https"
    return TargetGroup(targets=[parts.netloc], labels=labels)


def _labels(instance: Instance) -> dict[str, str] | None:
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
