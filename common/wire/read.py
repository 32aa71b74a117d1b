"""PURE. Reading a message of somebody who may be older, newer, or mistaken: one bad member costs no other."""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec

M = TypeVar("M", bound=msgspec.Struct)
_fields = cache(msgspec.structs.fields)  # 40 µs otherwise


def read_lenient(kind: type[M], members: Mapping[str, Any]) -> M:
    """The message with these members. One that is null or does not fit counts as absent.

    Args:
        kind: The struct.
        members: Decoded JSON; a member may be `msgspec.Raw`, and is then decoded as its type.

    Raises:
        msgspec.ValidationError: A member without a default is absent or does not fit.
    """
    if not any(isinstance(member, msgspec.Raw) for member in members.values()):
        try:
            return msgspec.convert(members, kind, strict=False)
        except (msgspec.ValidationError, RecursionError):
            pass  # member by member, then
    fitting: dict[str, Any] = {}
    for field in _fields(kind):
        member = members.get(field.encode_name)
        if member is None:
            continue
        try:
            if isinstance(member, msgspec.Raw):
                fitting[field.name] = msgspec.json.decode(member, type=field.type, strict=False)
            else:
                fitting[field.name] = msgspec.convert(member, field.type, strict=False)
        except (msgspec.MsgspecError, RecursionError):
            continue
        if fitting[field.name] is None:  # a null in the text
            del fitting[field.name]
    missing = [field.encode_name for field in _fields(kind) if field.required and field.name not in fitting]
    if missing:
        raise msgspec.ValidationError(f"{kind.__name__}: missing or wrong: {', '.join(missing)}")
    return kind(**fitting)


_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_json_lenient(kind: type[M], raw: bytes) -> M:
    """The message in a JSON text; as `read_lenient`.

    Raises:
        msgspec.MsgspecError: It is no JSON object, or a member without a default is absent or does not fit.
    """
    try:
        return msgspec.json.decode(raw, type=kind, strict=False)
    except msgspec.ValidationError:
        return read_lenient(kind, _decode_members(raw))
