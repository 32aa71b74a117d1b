"""PURE. API keys: known by their SHA-256, allowed some models, within limits.

The file (TOML or YAML, mode 0600) holds no key that could be stolen, only hashes:

    [[keys]]
    name = "team-a"
    sha256 = "…64 hex digits…"          # printf %s "$KEY" | sha256sum
    models = ["llama3.1-8b", "qwen-*"]  # names or patterns; none: all
    requests_per_minute = 600           # this and the other limits (docs/keys.md); none: no limit
    admin = false
    priority = "normal"                 # high, normal, low: who goes first when requests wait for room
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from enum import Enum
from fnmatch import fnmatchcase
from hashlib import sha256
from math import inf
from typing import Literal

import msgspec

from common.wire.keys import LIMITS

MEMORY = 4096
"""Secrets, and models, whose key and whose cover are remembered."""


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One secret of one client's key. Keys of the same name are one to limits and accounts."""

    name: str
    sha256: str
    models: tuple[str, ...] = ()
    requests_per_minute: float | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    max_in_flight: int | None = None
    admin: bool = False
    priority: Literal["high", "normal", "low"] = "normal"
    """Whose requests go first where requests wait."""
    weight: float = 1.0
    enabled: bool = True
    expires_at: datetime | None = None


class Refusal(Enum):
    """Why a request is not let in."""

    UNKNOWN = "invalid_api_key"
    MODEL = "model_not_allowed"
    ADMIN = "admin_only"


class KeyRing:
    """The keys of one router.

    Args:
        keys: All of them.
        wall: The time of day, in seconds since 1970; asked for keys that expire only.
    """

    def __init__(self, keys: Iterable[Key] = (), wall: Callable[[], float] = lambda: 0.0) -> None:
        self.keys = {key.sha256.lower(): key for key in keys if key.enabled}
        self.weights = {key.name: key.weight for key in self.keys.values() if key.weight != 1.0}
        """Of those that are not 1."""
        self._wall = wall
        self._until = {
            key.sha256: key.expires_at.timestamp() for key in self.keys.values() if key.expires_at is not None
        }
        self._bearers: dict[bytes, Key] = {}
        self._api_keys: dict[bytes, Key] = {}
        """By what a request showed in either header; only what was right."""
        self._covers: dict[tuple[str, str], bool] = {}

    def find(self, authorization: bytes | None, api_key: bytes | None = None) -> Key | None:
        """The key that a request shows, as a bearer token or in `x-api-key`.

        A look-up by hash leaks no timing of the key itself: who can choose the hash has broken SHA-256.
        """
        shown, seen = (api_key, self._api_keys) if authorization is None else (authorization, self._bearers)
        key = seen.get(shown) if shown is not None else None
        if key is None:
            scheme, _, token = (authorization or b"").partition(b" ")
            is_bearer = scheme.lower() == b"bearer"
            secret = token.strip() if is_bearer else api_key
            key = self.keys.get(sha256(secret).hexdigest()) if secret else None
            if key is None:
                return None
            if shown is not None and (is_bearer or authorization is None):
                if len(seen) >= MEMORY:
                    seen.clear()
                seen[shown] = key
        if self._until and self._wall() >= self._until.get(key.sha256, inf):
            return None
        return key

    def covers(self, key: Key, model: str | None) -> bool:
        """True when `key` may ask for `model`."""
        if not key.models or model in key.models:
            return True
        if model is None:
            return False
        asked = (key.name, model)
        covered = self._covers.get(asked)
        if covered is None:
            covered = any(fnmatchcase(model, pattern) for pattern in key.models)
            if len(self._covers) >= MEMORY:
                self._covers.clear()
            self._covers[asked] = covered
        return covered


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
        f"keys.{number}.{name}: must be greater than 0"
        for number, key in enumerate(keys)
        for name in (*LIMITS, "weight")
        if not 0 < (1 if (value := getattr(key, name)) is None else value) < inf
    ]
    lines += [
        f"keys.{number}.expires_at: must have an offset, as in 2027-01-31T00:00:00Z"
        for number, key in enumerate(keys)
        if key.expires_at is not None and key.expires_at.tzinfo is None
    ]
    if len({key.sha256.lower() for key in keys}) != len(keys):
        lines.append("keys: the same sha256 appears twice")
    return lines
