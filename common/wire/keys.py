"""PURE. API keys as people manage them at the registry, and as its routers get them (docs/keys.md).

Times are ISO 8601 with an offset. No secret travels but in the answer that makes it.
"""

from datetime import datetime
from typing import Annotated, Literal, TypeAlias

import msgspec

from common.wire.base import Message

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=10**15)]
Pattern: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Moment: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]


LIMITS = ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "tokens_per_month", "max_in_flight")
"""Members of a key that limit it."""


class KeySettings(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key may do. A limit that is not there is none; without `models` (names or patterns) it may use all.

    An unknown member is an error: a limit that a typing error leaves out would be none.
    """

    models: Annotated[tuple[Pattern, ...], msgspec.Meta(max_length=200)] = ()
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    tokens_per_day: Count | None = None
    tokens_per_month: Count | None = None
    """Days and months are UTC's."""
    max_in_flight: Count | None = None
    priority: Literal["high", "normal", "low"] = "normal"
    weight: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1.0
    """Its share beside others' where requests wait."""
    admin: bool = False
    enabled: bool = True
    expires_at: Moment | None = None


class NewKey(KeySettings, frozen=True, kw_only=True):
    """`POST /api/v1/keys`."""

    name: str


class RotateCall(Message, frozen=True, kw_only=True):
    """`POST …/rotate`: for so many seconds the old secret is taken as well."""

    grace_s: Annotated[float, msgspec.Meta(ge=0, le=90 * 86_400)] = 86_400.0


class KeyInfo(KeySettings, frozen=True, kw_only=True):
    """A key as it is shown."""

    name: str
    created_at: Moment
    old_secret_until: Moment | None = None
    """Until then the secret before the latest is taken as well."""


class KeyWithSecret(KeyInfo, frozen=True, kw_only=True):
    """The same, once, with its new secret."""

    secret: str


class KeyList(Message, frozen=True, kw_only=True):
    """`GET /api/v1/keys`."""

    total: int
    keys: list[KeyInfo]


class KeyRecord(KeyInfo, frozen=True, kw_only=True):
    """A key as it is stored, and as routers get it: its secrets are known by their SHA-256 only."""

    sha256: str
    old_sha256: str | None = None


class RouterKeys(Message, frozen=True, kw_only=True):
    """`GET /v1/keys`: all keys; `version` is another one whenever they are."""

    version: str
    keys: list[KeyRecord]
