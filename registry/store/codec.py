"""How a record is written to a store: JSON, with nothing in it that time would make untrue."""

from typing import Any

import msgspec

from registry.core.model import Instance, Registration
from registry.core.report import make_report

_NONE = msgspec.Raw(b"null")


class _Stored(msgspec.Struct, frozen=True):
    registration: Registration
    generation: int
    draining: bool = False
    report: msgspec.Raw = _NONE


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Stored).decode
_decode_report = msgspec.json.Decoder(dict[str, Any] | None).decode


def encode(instance: Instance) -> bytes:
    """The durable part of a record."""
    report = _NONE if instance.report is None else msgspec.Raw(instance.report.lasting)
    return _encode(_Stored(instance.registration, instance.generation, instance.draining, report))


def decode(raw: bytes) -> Instance:
    """Read what `encode` wrote.

    Raises:
        msgspec.DecodeError: It is something else.
    """
    stored = _decode(raw)
    said = _decode_report(stored.report)
    report = None if said is None else make_report(said)
    return Instance(stored.registration, stored.generation, draining=stored.draining, report=report)
