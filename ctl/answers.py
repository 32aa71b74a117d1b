"""PURE. Answers of services as structs of common/wire, whoever answers: an older server's is shown as far as it goes."""

from enum import Enum
from typing import Any, TypeVar, get_args

import msgspec

from common.wire.base import Message

M = TypeVar("M", bound=Message)


def read(kind: type[M], answer: object) -> M:
    """The answer. A member that is missing or does not fit has its default, or else nothing: "", 0, no items."""
    members = answer if isinstance(answer, dict) else {}
    values = {}
    for field in msgspec.structs.fields(kind):
        try:
            values[field.name] = msgspec.convert(members[field.encode_name], field.type, strict=False)
        except (KeyError, msgspec.ValidationError):
            if field.required:
                values[field.name] = _nothing(field.type)
    return kind(**values)


def items(kind: type[M], answer: object, member: str) -> list[M]:
    """The objects in a list that an answer has; what is no object counts as none."""
    listed = answer.get(member) if isinstance(answer, dict) else None
    return [read(kind, item) for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []


def _nothing(kind: Any) -> Any:
    """The value of a type that says nothing; of a choice of words the first."""
    nothings: tuple[Any, ...] = (None, "", 0, [], {})
    for value in nothings:
        try:
            return msgspec.convert(value, kind, strict=False)
        except msgspec.ValidationError:
            continue
    return next(iter(kind)) if isinstance(kind, type) and issubclass(kind, Enum) else get_args(kind)[0]
