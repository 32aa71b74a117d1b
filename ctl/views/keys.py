"""PURE. API keys as a table."""

from collections.abc import Sequence
from datetime import datetime

from common.wire.keys import LIMITS, KeyInfo
from ctl.table import TextTable

COLUMNS = ("NAME", "STATE", "MODELS", "REQ/MIN", "TOK/MIN", "TOK/DAY", "TOK/MONTH", "AT ONCE", "PRIORITY", "EXPIRES")


def table(keys: Sequence[KeyInfo], now: datetime) -> TextTable:
    """One line each; a limit that is not there is `-`."""
    return TextTable(COLUMNS, [_row(key, now) for key in keys], right=frozenset(COLUMNS[3:8]))


def _row(key: KeyInfo, now: datetime) -> list[str]:
    counts = [getattr(key, name) for name in LIMITS]
    expires = "" if key.expires_at is None else f"{key.expires_at:%Y-%m-%d %H:%M}"
    return [
        key.name + (" (admin)" if key.admin else ""),
        state(key, now),
        ", ".join(key.models) or "all",
        *("" if count is None else str(count) for count in counts),
        key.priority,
        expires,
    ]


def state(key: KeyInfo, now: datetime) -> str:
    """Whether it lets somebody in."""
    if not key.enabled:
        return "disabled"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "active"
