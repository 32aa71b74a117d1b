"""The router's own record in the registry: how the registry's page and Prometheus find it. No request depends on it."""

import re
import socket
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from common.discovery.lease import Lease
from common.discovery.registry_client import RegistryClient

HEARTBEAT_S = 5.0
TTL_S = 15.0
RECORD_TYPE = "router"
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")


def own_url(host: str, port: int, advertised: str | None) -> str:
    """The URL that others reach this router at: as configured, else made of where it listens."""
    if advertised:
        return advertised.rstrip("/")
    name = socket.gethostname() if host in _WILDCARDS else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def registration(url: str, port: int, hostname: str, incarnation: int) -> dict[str, Any]:
    """The body of `POST /services`. Its name stays the same when the router starts again, so a new life takes it over.

    Args:
        url: From `own_url`.
        port: Where it listens on this machine.
        hostname: This machine's name.
        incarnation: Higher in every later life.
    """
    name = f"router-{_UNFIT.sub('-', hostname)[:100].strip('-.') or 'node'}-{port}"
    parts = urlsplit(url)
    return {
        "name": name,
        "host": parts.hostname or "localhost",
        "port": parts.port or (443 if parts.scheme == "https" else 80),
        "hostname": hostname,
        "url": url,
        "status": "running",
        "metadata": {"type": RECORD_TYPE},
        "instance_id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
        "incarnation": incarnation,
        "ttl_s": TTL_S,
    }


def make_lease(client: RegistryClient, host: str, port: int, advertised: str | None) -> Lease:
    """The lease that keeps this router's record."""
    record = registration(own_url(host, port, advertised), port, socket.gethostname(), int(time.time()))
    beat = {"instance_id": record["instance_id"], "incarnation": record["incarnation"], "status": "running"}
    return Lease(client=client, registration=lambda: record, report=lambda: beat, interval_s=HEARTBEAT_S)
