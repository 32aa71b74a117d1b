"""What a service, a replica and a model may be called (FAILURES.md 3.1 and E4)."""

import re

SERVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
REPLICA_ID = re.compile(r"[a-z0-9][a-z0-9-]{11}")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[?[0-9A-Fa-f:.]{2,45}\]?")


def is_service_name(text: str) -> bool:
    """True for ASCII letters, digits, `.`, `_`, `-`; 1 to 128 characters, the first a letter or a digit."""
    return SERVICE_NAME.fullmatch(text) is not None


def is_replica_id(text: str) -> bool:
    """True for 12 characters of `[a-z0-9-]`."""
    return REPLICA_ID.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """True for what can stand before `:port`: a DNS name or an IP literal."""
    return HOST.fullmatch(text) is not None
