"""Reading heartbeats: most are plain and many, so the plain ones are accepted quickly and the rest are judged slowly.

`read` gives what `schema.HeartbeatBody` and `parse_json_object` would; it only takes the short way when no fault can hide
there. A test feeds both with the same bodies.
"""

import re
from typing import Annotated, Any

import msgspec
from aiohttp import web

from common.http.errors import parse_json_object
from registry.core.model import Renew
from registry.core.report import make_report
from registry.http.bodies import LARGEST_INT, HeartbeatBody, parse

_Int64 = Annotated[int, msgspec.Meta(ge=-LARGEST_INT, le=LARGEST_INT - 1)]
_decode = msgspec.json.Decoder(dict[str, str | bool | _Int64 | float | list[str] | None]).decode
"""A flat body, whose types are checked as it is decoded."""
_SPACED_COLON = re.compile(rb'"[ \t\r\n]+:')
_INSTANCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PLAIN_FIELDS = frozenset({"status", "timestamp", "instance_id", "incarnation"})
STATUS_LIMIT = 64
AT_ONCE_BYTES = 16 << 10


async def read(request: web.Request, name: str) -> Renew:
    """The heartbeat that a request carries: nothing, a status, or a replica report.

    Raises:
        ApiError: 400; the body is no JSON object, or a member has a wrong type.
    """
    content, length = request.content, request.content_length
    if length is not None and length <= AT_ONCE_BYTES and content.is_eof():
        raw = content.read_nowait()  # it came together with its head, as nearly every heartbeat does
    else:
        raw = await request.read()
    if not raw:
        return Renew(name)
    body = _quickly(raw)
    if body is None:
        body = parse_json_object(raw)
        parse(HeartbeatBody, body)
    report = None if body.keys() <= _PLAIN_FIELDS else make_report(body)
    return Renew(name, body.get("status"), body.get("instance_id"), body.get("incarnation"), report)


def _quickly(raw: bytes) -> dict[str, Any] | None:
    """The body, if it is flat, valid beyond doubt and has no key twice; None otherwise."""
    try:
        body = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    # Every key is followed by `":` in the text, so an equal count leaves no room for one that came twice.
    if raw.count(b'":') != len(body) or _SPACED_COLON.search(raw):
        return None
    return body if _has_valid_members(body) else None


def _has_valid_members(body: dict[str, Any]) -> bool:
    """What `HeartbeatBody` asks of its members."""
    status, instance_id, incarnation = body.get("status"), body.get("instance_id"), body.get("incarnation")
    return (
        (status is None or (type(status) is str and 0 < len(status) <= STATUS_LIMIT and status.isprintable()))
        and (instance_id is None or (type(instance_id) is str and _INSTANCE_ID.fullmatch(instance_id) is not None))
        and (incarnation is None or (type(incarnation) is int and 0 <= incarnation <= 2**53))
    )
