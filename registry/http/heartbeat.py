"""Reading heartbeats: most are plain and many, so the plain ones are accepted quickly and the rest are judged slowly.

The quick way takes what the slow one takes and reads it the same; it is left where a fault could hide. A test feeds both
with the same bodies.
"""

import re
from collections.abc import Mapping
from typing import Annotated

import msgspec
from aiohttp import web

from common.http.errors import ApiError, check_values, parse_json_object
from common.wire.record import Heartbeat
from registry.core.model import Renew
from registry.core.report import make_report
from registry.http.context import Registry

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Flat = str | bool | _Int64 | float | None
_Part = _Flat | list[_Flat] | dict[str, _Flat]
_Member = _Flat | list[_Part] | dict[str, _Part]
Body = Mapping[str, object]
_decode = msgspec.json.Decoder(dict[str, _Member]).decode
"""As deep as a babysitter's report; numbers are checked as they are decoded."""
_SPACED_COLON = re.compile(rb'"[ \t\r\n]+:')
_PLAIN_FIELDS = frozenset({"status", "timestamp", "instance_id", "incarnation"})
_ACTED_UPON = Heartbeat.__struct_fields__
AT_ONCE_BYTES = 16 << 10
BODY = web.RequestKey("heartbeat", bytes)
"""What `registry.http.quick` read and did not act upon."""
RECEIVED = "Heartbeat received"
_ANSWER = b'{"message":"' + RECEIVED.encode() + b'","timestamp":"%b"%b}'


def received(registry: Registry) -> bytes:
    """The answer to most of them."""
    return _ANSWER % (registry.renderer.timestamp().encode(), registry.pace.said)


async def read(request: web.Request, name: str) -> Renew:
    """The heartbeat that a request carries: nothing, a status, or a replica report.

    Raises:
        ApiError: 400; the body is no JSON object, or a member has a wrong type.
    """
    return parse(request[BODY] if BODY in request else await request.read(), name)


def parse(raw: bytes, name: str) -> Renew:
    """The heartbeat that a body says.

    Raises:
        ApiError: 400; as `read`.
    """
    if not raw:
        return Renew(name)
    body = _quickly(raw)
    if body is None:
        body = parse_json_object(raw)
        check_values(body, status=400)
    beat = check(body)
    report = None if body.keys() <= _PLAIN_FIELDS else make_report(body)
    return Renew(name, beat.status, beat.instance_id, beat.incarnation, report)


def check(body: Body) -> Heartbeat:
    """The members of a heartbeat that a registry acts upon.

    Raises:
        ApiError: 400; the message and `details` name every bad one, `field` the first.
    """
    try:
        beat = msgspec.convert({name: body.get(name) for name in _ACTED_UPON}, Heartbeat)
        if beat.status is None or beat.status.isprintable():
            return beat
    except msgspec.ValidationError:
        pass  # told below, every member on its own
    details = [{"field": name, "problem": problem} for name in _ACTED_UPON if (problem := _problem(name, body))]
    text = "; ".join(f"field {detail['field']!r}: {detail['problem']}" for detail in details)
    raise ApiError(400, text, field=details[0]["field"], details=details)


def _problem(name: str, body: Body) -> str | None:
    """What is wrong with one member, or None."""
    try:
        beat = msgspec.convert({name: body.get(name)}, Heartbeat)
    except msgspec.ValidationError as error:
        text = str(error).partition(" - at ")[0]
        return text[:1].lower() + text[1:]
    unprintable = name == "status" and beat.status is not None and not beat.status.isprintable()
    return "must not contain control characters" if unprintable else None


def _quickly(raw: bytes) -> Body | None:
    """The body, if it is valid beyond doubt and has no key twice; None otherwise."""
    try:
        body = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    # Every key is followed by `":` in the text, so an equal count leaves no room for one that came twice.
    colons = raw.count(b'":')
    once = colons == len(body) or colons == _keys(body)
    return body if once and not _SPACED_COLON.search(raw) else None


def _keys(value: object) -> int:
    """How many keys there are, inner ones too."""
    if isinstance(value, dict):
        return len(value) + sum([_keys(it) for it in value.values() if type(it) is dict or type(it) is list])
    return sum([_keys(it) for it in value if type(it) is dict or type(it) is list]) if isinstance(value, list) else 0
