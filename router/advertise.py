"""What a router says of itself when it watches the registry: how the registry's page and Prometheus find it.

It goes out as parameters of the watch and holds for as long as the watch does: no record, no lease, no deregistration. No
request depends on it. A registry that does not know the parameters ignores them.
"""

import re
import socket

from common.wire.address import url

_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")


def presence(host: str, port: int, advertised: str | None, *, scheme: str = "http") -> dict[str, str]:
    """Parameters of the watch.

    Args:
        host: Where the router listens.
        port: Its port on this machine; with the machine's name it makes the router's name.
        advertised: The URL that others reach it at, when it is not made of these.
        scheme: `https` where it has a certificate.
    """
    machine = socket.gethostname()
    return {"router": router_name(machine, port), "router_url": own_url(machine, host, port, advertised, scheme=scheme)}


def router_name(machine: str, port: int) -> str:
    """A name that the same router has again after a restart."""
    return f"router-{_UNFIT.sub('-', machine)[:100].strip('-.') or 'node'}-{port}"


def own_url(machine: str, host: str, port: int, advertised: str | None, *, scheme: str = "http") -> str:
    """The URL that others reach this router at."""
    if advertised:
        return advertised.rstrip("/")
    return url(machine if host in _WILDCARDS else host, port, scheme=scheme)
