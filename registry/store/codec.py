"""How a record is written to a store: JSON, with nothing in it that time would make untrue."""

import msgspec

from common.wire.base import JsonObject
from common.wire.read import read_lenient
from common.wire.record import Registration
from registry.core.model import Instance
from registry.core.report import make_report

_NONE = msgspec.Raw(b"null")


class _Stored(msgspec.Struct, frozen=True):
    registration: Registration
    generation: int
    draining: bool = False
    report: msgspec.Raw = _NONE
    hand_over: bool = False


class _Read(msgspec.Struct, frozen=True):
    """As `_Stored`; versions before common/wire wrote null for what a client had not said."""

    registration: dict[str, msgspec.Raw]
    generation: int
    draining: bool = False
    report: JsonObject | None = None
    hand_over: bool = False


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Read).decode


def encode(instance: Instance) -> bytes:
    """The durable part of a record."""
    report = _NONE if instance.report is None else msgspec.Raw(instance.report.lasting)
    return _encode(_Stored(instance.registration, instance.generation, instance.draining, report, instance.hand_over))


def decode(raw: bytes) -> Instance:
    """Read what `encode` wrote, of this version or of an older one.

    Raises:
        msgspec.DecodeError: It is something else.
    """
    stored = _decode(raw)
    registration = read_lenient(Registration, stored.registration)
    report = None if stored.report is None else make_report(stored.report)
    return Instance(
        registration, stored.generation, draining=stored.draining, report=report, hand_over=stored.hand_over
    )
