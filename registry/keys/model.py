"""PURE. What a call makes of a key; the secret itself is nobody's to keep (docs/keys.md)."""

import base64
from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import sha256

import msgspec

from common.wire.keys import KeyInfo, KeyRecord, KeySettings, KeyWithSecret, NewKey

SECRET_BYTES = 32
_SETTINGS = KeySettings.__struct_fields__


def secret_of(random: bytes) -> str:
    """The secret made of `SECRET_BYTES` random bytes."""
    return "sk-svc-" + base64.urlsafe_b64encode(random).decode().rstrip("=")


def digest(secret: str) -> str:
    """What is kept of a secret. It is random, so that a slow hash would protect it no better."""
    return sha256(secret.encode()).hexdigest()


def created(key: NewKey, secret: str, now: datetime) -> KeyRecord:
    """A new key."""
    return KeyRecord(**msgspec.structs.asdict(key), created_at=now, sha256=digest(secret))


def rotated(key: KeyRecord, secret: str, grace_s: float, now: datetime) -> KeyRecord:
    """The key with a new secret; the one before the old is taken no more."""
    until = now + timedelta(seconds=grace_s) if grace_s else None
    return msgspec.structs.replace(
        key,
        sha256=digest(secret),
        old_sha256=key.sha256 if until else None,
        old_secret_until=until,
    )


def changed(key: KeyRecord, change: Mapping[str, object]) -> KeyRecord:
    """The key with the members of `change`; null takes a limit away.

    Raises:
        msgspec.ValidationError: One of them is none, or cannot be that.
    """
    now = {name: getattr(key, name) for name in _SETTINGS}
    asked = {name: value for name, value in change.items() if value is not None}
    kept = {name: value for name, value in now.items() if name not in change}
    settings = msgspec.convert({**msgspec.to_builtins(kept), **asked}, KeySettings)
    return msgspec.structs.replace(key, **msgspec.structs.asdict(settings))


def shown(key: KeyRecord) -> KeyInfo:
    """The key without what its secrets are known by."""
    return KeyInfo(**{name: getattr(key, name) for name in KeyInfo.__struct_fields__})


def with_secret(key: KeyRecord, secret: str) -> KeyWithSecret:
    """The key with its new secret, for the one answer that has it."""
    return KeyWithSecret(**msgspec.structs.asdict(shown(key)), secret=secret)
