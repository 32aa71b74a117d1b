"""PURE. What a server answers to its models call, read in one way by whoever asks it."""

import msgspec

from common.wire.base import ModelObject

MODELS_LIMIT_BYTES = 16 << 20
"""Of one such answer; two thousand models with all that an aggregator says of each are about 5 MiB."""


def parse_models(raw: bytes) -> tuple[ModelObject, ...]:
    """The model objects of a models call: `{"data": […]}` or a bare list, of objects with an `id` or of ids.

    Raises:
        ValueError: It is neither.
    """
    try:
        body = msgspec.json.decode(raw)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or deeper than anybody means
        raise ValueError(f"no JSON: {error}") from error
    listed = body.get("data", body.get("models")) if isinstance(body, dict) else body
    if not isinstance(listed, list):
        raise ValueError("no list of models")  # noqa: TRY004 - the answer is wrong, not our argument
    objects = [{"id": item, "object": "model"} if isinstance(item, str) else item for item in listed]
    return tuple(item for item in objects if isinstance(item, dict) and isinstance(item.get("id"), str))
