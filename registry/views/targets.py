"""What Prometheus should scrape: the fleet as its HTTP service discovery wants it. PURE.

Routers and babysitters of ours (their records have an instance id) have `/metrics` at their own address. A server or a
node's agent is scraped when its record says where: `metadata.metrics_path`.
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from common.wire.address import authority
from registry.core.model import Instance
from registry.outbound.addresses import Peer

JOBS = {"node-agent": "agent", "openai-api": "server"}
"""`metadata.type` to Prometheus' job; every other record of ours is a babysitter's, whose type is its backend's name."""
MUST_SAY = frozenset({"node-agent", "openai-api"})
PATH_LIMIT = 256


def targets(instances: Iterable[Instance], routers: Iterable[Peer], own: str) -> list[dict[str, Any]]:
    """Target groups, this registry's first.

    Args:
        instances: The records.
        routers: Those that watch this registry.
        own: `host:port` under which the caller reached this registry.
    """
    groups = [{"targets": [own], "labels": {"job": "registry", "service": "registry"}}]
    groups += [_router(peer) for peer in routers]
    return groups + [
        {"targets": [_authority(instance)], "labels": labels}
        for instance in instances
        if (labels := _labels(instance)) is not None
    ]


def _router(peer: Peer) -> dict[str, Any]:
    parts = urlsplit(peer.url)
    labels = {"job": "router", "service": peer.name, "node": parts.hostname or ""}
    if parts.scheme == "https":
        labels["__scheme__"] = "https"
    return {"targets": [parts.netloc], "labels": labels}


def _labels(instance: Instance) -> dict[str, str] | None:
    """The labels of one target, or None for what has no metrics that we know of."""
    said = instance.registration
    labels = {"service": said.name, "node": said.hostname or said.host}
    if said.url.startswith("https:"):
        labels["__scheme__"] = "https"
    kind = instance.kind or ""
    path = said.metadata.get("metrics_path")
    if isinstance(path, str) and path.startswith("/") and len(path) <= PATH_LIMIT:
        labels["__metrics_path__"] = path
    elif said.instance_id is None or kind in MUST_SAY:
        return None
    return {**labels, "job": JOBS.get(kind, "babysitter")}


def _authority(instance: Instance) -> str:
    return authority(instance.registration.host.strip("[]"), instance.registration.port)
