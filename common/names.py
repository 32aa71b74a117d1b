"""What a service, a replica and a model may be called (FAILURES.md 3.1 and E4)."""

import ipaddress
import re

SERVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
REPLICA_ID = re.compile(r"[a-z0-9][a-z0-9-]{11}")
_LABEL = r"[A-Za-z0-9-]{1,63}"
HOST_NAME = re.compile(rf"(?=[A-Za-z0-9])(?!.{{254}}){_LABEL}(\.{_LABEL})*(?<=[A-Za-z0-9])")
"""An empty label, or one of more than 63 letters, cannot be asked of a name server: Python raises a UnicodeError."""


def is_service_name(text: str) -> bool:
    """True for ASCII letters, digits, `.`, `_`, `-`; 1 to 128 characters, the first a letter or a digit."""
    return SERVICE_NAME.fullmatch(text) is not None


def is_replica_id(text: str) -> bool:
    """True for 12 characters of `[a-z0-9-]`."""
    return REPLICA_ID.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """True for what can stand before `:port`: a DNS name or an IP literal."""
    return HOST_NAME.fullmatch(text) is not None or _is_address(text)


def _is_address(text: str) -> bool:
    """True for an IP literal, in brackets or bare, without a zone."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return False
    return "%" not in bare
