"""PURE. How a service is reached, from its record: one plan, for probes and for requests.

The record's URL says scheme, host, port, and a base path that goes before every path; what it leaves out, or all of it
where it is no URL, comes from the record's host and port. Which addresses the host has is the resolver's to say
(`common/hosts.py`), and how TLS is checked the settings' (`common/http/tls.py`).
"""

import functools
import re
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from common.names import is_host
from common.wire.address import authority, bare

BASE_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
"""No escape, no empty part, none that begins with a dot: it becomes part of a request line."""
PREFIX = "/v1"
REMEMBERED = 32_768
"""Two records of each replica that a router has room for, and no secret of any."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a service is, and how to speak with it.

    `host` has no brackets. `base_path` is empty or `/team-a`; `api_prefix` is `/v1` when the URL ended so, as those given
    to OpenAI's clients do, and None when it says nothing of it. `authorization` is the header's whole value, a secret.
    """

    host: str
    port: int
    tls: bool = False
    base_path: str = ""
    api_prefix: str | None = None
    authorization: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """What goes before a path such as `/health`."""
        return f"{'https' if self.tls else 'http'}://{authority(self.host, self.port)}{self.base_path}"


def plan_of(url: str, host: str, port: int, *, authorization: str | None = None) -> Plan:
    """The plan of a record.

    Args:
        url: The record's.
        host: The record's, for a URL without one.
        port: The record's, for a URL without one.
        authorization: What the service wants to see.
    """
    plan = _read(url, host, port)
    return plan if authorization is None else replace(plan, authorization=authorization)


@functools.lru_cache(maxsize=REMEMBERED)  # of every record it is asked at every probe and change
def _read(url: str, host: str, port: int) -> Plan:
    by_record = Plan(bare(host), port)
    try:
        parts = urlsplit(url)
        named, told_port = parts.hostname, parts.port
    except ValueError:  # brackets that do not match, a port that is no number
        return by_record
    path = parts.path.rstrip("/")
    if parts.scheme not in ("http", "https") or not named or not is_host(named) or told_port == 0:
        return by_record
    if "@" in parts.netloc or parts.query or parts.fragment or (path and not BASE_PATH.fullmatch(path)):
        return by_record
    prefixed = path.endswith(PREFIX)
    return Plan(
        host=named,
        port=told_port or port,
        tls=parts.scheme == "https",
        base_path=path.removesuffix(PREFIX),
        api_prefix=PREFIX if prefixed else None,
    )
