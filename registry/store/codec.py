"""How a record is written to a store: JSON, with nothing in it that time would make untrue."""

from dataclasses import replace

import msgspec

from registry.catalogue import VOLATILE_REPORT_FIELDS
from registry.model import Health, Instance

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Instance).decode


def encode(instance: Instance) -> bytes:
    """The durable part of a record."""
    report = instance.report
    if report is not None:
        report = {key: value for key, value in report.items() if key not in VOLATILE_REPORT_FIELDS}
    return _encode(replace(instance, health=Health.UNKNOWN, stale=False, suspect=False, report=report))


def decode(raw: bytes) -> Instance:
    """Read what `encode` wrote.

    Raises:
        msgspec.DecodeError: It is something else.
    """
    return _decode(raw)
