"""PURE. A worker's limits, as the settings say them."""

from dataclasses import dataclass
from typing import Final

WRITE_STALL_S: Final = 60.0
"""A client that takes no byte for so long is dropped (docs/faults.md D3)."""
HELD_LIMIT_BYTES: Final = 64 << 20
"""A JSON answer up to this size is held whole before its first byte goes out (docs/faults.md G9)."""


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    connect_timeout_s: float
    first_byte_timeout_s: float
    idle_timeout_s: float
    total_timeout_s: float
    max_retries: int
    max_body_bytes: int
    max_bodies_bytes: int
    max_connections: int
    any_path: bool
    extra_paths: frozenset[bytes]
    cors_origins: frozenset[bytes] = frozenset()
    strip_prefixes: tuple[bytes, ...] = ()
    extra_headers: tuple[str, ...] = ()
    queue_limit: int = 256
    queue_timeout_s: float = 30.0
    hold_s: float = 60.0
    hold_limit: int = 2048
    sse_keepalive_s: float = 15.0
    access_log_sample: float = 0.0
    allow_policy_header: bool = False
    session_header: bytes = b""
    served_by: bool = False
    held_limit_bytes: int = HELD_LIMIT_BYTES
    head_timeout_s: float = 15.0
    stream_uploads_bytes: int = 0
    body_idle_timeout_s: float = 30.0
    body_timeout_s: float = 600.0
    keepalive_s: float = 60.0
    write_stall_s: float = WRITE_STALL_S
    last_chance_s: float = 1.0
    """A router that stops closes connections that have been idle for so long."""
    websocket_timeout_s: float = 3600.0
    max_rescues: int = 1
