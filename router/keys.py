"""PURE. API keys: known by their SHA-256, allowed some models, at some rate.

The file (TOML or YAML, mode 0600) holds no key that could be stolen, only hashes:

    [[keys]]
    name = "team-a"
    sha256 = "…64 hex digits…"          # printf %s "$KEY" | sha256sum
    models = ["llama3.1-8b"]            # none: all
    requests_per_minute = 600           # none: no limit
    admin = false
    priority = "normal"                 # high, normal, low: who goes first when requests wait for room
"""

from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256
from typing import Literal

import msgspec


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One client's key."""

    name: str
    sha256: str
    models: tuple[str, ...] = ()
    requests_per_minute: float | None = None
    admin: bool = False
    priority: Literal["high", "normal", "low"] = "normal"
    """Whose requests go first where requests wait."""


class Refusal(Enum):
    """Why a request is not let in."""

    UNKNOWN = "invalid_api_key"
    MODEL = "model_not_allowed"
    RATE = "rate_limited"
    ADMIN = "admin_only"


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


@dataclass(slots=True)
class KeyRing:
    """The keys of one router and, per worker, how much of their rate is left (a token bucket of one minute's burst)."""

    keys: dict[str, Key] = field(default_factory=dict)
    workers: int = 1
    _buckets: dict[str, _Bucket] = field(default_factory=dict)

    @classmethod
    def of(cls, keys: tuple[Key, ...], workers: int) -> "KeyRing":
        """A ring of `keys`; each of `workers` workers grants its share of a rate."""
        return cls({key.sha256.lower(): key for key in keys}, workers)

    def __bool__(self) -> bool:
        return bool(self.keys)

    def find(self, authorization: bytes | None, api_key: bytes | None = None) -> Key | None:
        """The key that a request shows, as a bearer token or in `x-api-key`.

        A look-up by hash leaks no timing of the key itself: who can choose the hash has broken SHA-256.
        """
        scheme, _, token = (authorization or b"").partition(b" ")
        key = token.strip() if scheme.lower() == b"bearer" else api_key
        return self.keys.get(sha256(key).hexdigest()) if key else None

    def allows(self, key: Key, model: str | None, now: float) -> Refusal | None:
        """None, or why `key` may not ask for `model` now; a granted request is counted."""
        if key.models and model not in key.models:
            return Refusal.MODEL
        if key.requests_per_minute is None:
            return None
        rate_per_s = key.requests_per_minute / 60 / self.workers
        burst = max(1.0, key.requests_per_minute / self.workers)
        bucket = self._buckets.setdefault(key.sha256, _Bucket(burst, now))
        bucket.tokens = min(burst, bucket.tokens + (now - bucket.filled_at) * rate_per_s)
        bucket.filled_at = now
        if bucket.tokens < 1.0:
            return Refusal.RATE
        bucket.tokens -= 1.0
        return None


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    keys: tuple[Key, ...]


def faults(keys: tuple[Key, ...]) -> list[str]:
    """What is wrong with `keys`, one line each."""
    lines = [
        f"keys.{number}.sha256: must be 64 hexadecimal digits"
        for number, key in enumerate(keys)
        if len(key.sha256) != 64 or not set(key.sha256.lower()) <= set("0123456789abcdef")  # noqa: PLR2004 - of SHA-256
    ]
    lines += [
        f"keys.{number}.requests_per_minute: must be greater than 0"
        for number, key in enumerate(keys)
        if key.requests_per_minute is not None and not key.requests_per_minute > 0
    ]
    if len({key.sha256.lower() for key in keys}) != len(keys):
        lines.append("keys: the same sha256 appears twice")
    return lines
