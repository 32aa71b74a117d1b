"""`null` for a member that may be absent means that it is absent (docs/contract.md 7).

Clients of both ancestors send it: their models were pydantic's lax `Optional`. It is taken out before the validation and
not by a validator, since one that runs before the fields would turn strict JSON into strict Python.
"""

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from common.wire.base import JsonObject


def without_nulls(model: type[BaseModel], body: Mapping[str, Any]) -> JsonObject:
    """`body` without the members of `model` that are null, and the same within its members that are models.

    What stands in a free-form member stays as it is, and so does a member that the model does not know.
    """
    kept = {}
    for name, value in body.items():
        field = model.model_fields.get(name)
        if field is None or value is not None:
            inner = _model_of(field.annotation) if field is not None and isinstance(value, Mapping) else None
            kept[name] = value if inner is None else without_nulls(inner, value)
    return kept


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) in (Union, UnionType):
        annotation = next((part for part in get_args(annotation) if part is not NoneType), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
