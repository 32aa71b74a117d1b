"""How a record is written to a store: JSON, with nothing in it that time would make untrue."""

from dataclasses import replace

import msgspec

from registry.model import Health, Instance
from registry.report import stable

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Instance).decode


def encode(instance: Instance) -> bytes:
    """The durable part of a record."""
    report = None if instance.report is None else stable(instance.report)
    return _encode(replace(instance, health=Health.UNKNOWN, stale=False, suspect=False, report=report))


def decode(raw: bytes) -> Instance:
    """Read what `encode` wrote.

    Raises:
        msgspec.DecodeError: It is something else.
    """
    return _decode(raw)
