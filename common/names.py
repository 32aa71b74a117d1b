"""What a service, a replica and a model may be called (docs/faults.md G15 and E4), and what `localhost` means."""

import ipaddress
import re

SERVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
REPLICA_ID = re.compile(r"[a-z0-9][a-z0-9-]{11}")
_LABEL = r"[A-Za-z0-9_-]{1,63}"
HOST_NAME = re.compile(rf"(?=[A-Za-z0-9])(?!.{{254}}){_LABEL}(\.{_LABEL})*(?<=[A-Za-z0-9_])")
"""With the underscores that compose gives its containers. An empty label, or one of more than 63 letters, cannot be asked of a name server: Python raises a UnicodeError."""


LOOPBACK = ("127.0.0.1", "::1")


def is_localhost(host: str) -> bool:
    """True for the name of this machine's loopback, whatever /etc/hosts and the resolver make of it (RFC 6761, 6.3)."""
    return host.lower().rstrip(".") == "localhost"


def bind_address(host: str) -> str:
    """What to bind for `host`: 127.0.0.1 for `localhost`, anything else as it is.

    Every machine has 127.0.0.1. Where IPv6 is off there is no ::1, though Docker's /etc/hosts names it all the same.
    """
    return LOOPBACK[0] if is_localhost(host) else host


def is_service_name(text: str) -> bool:
    """True for ASCII letters, digits, `.`, `_`, `-`; 1 to 128 characters, the first a letter or a digit."""
    return SERVICE_NAME.fullmatch(text) is not None


def is_replica_id(text: str) -> bool:
    """True for 12 characters of `[a-z0-9-]`."""
    return REPLICA_ID.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """True for what can stand before `:port`: a DNS name or an IP literal."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return HOST_NAME.fullmatch(text) is not None or (is_address(bare) and "%" not in bare)


def is_address(text: str) -> bool:
    """True for an IP address, without brackets."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
