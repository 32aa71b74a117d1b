"""PURE. What all messages have in common."""

from typing import Any, TypeAlias

import msgspec

JsonObject: TypeAlias = dict[str, Any]
"""JSON of somebody else's making: an engine's model object, an operator's `[metadata]`, a client's `full_config`."""


ModelObject: TypeAlias = JsonObject
"""What a server says of one of its models: an object with an `id`, and whatever its maker puts there."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what travels as JSON. Unknown members are ignored, so that old and new processes can meet.

    A member of type `… | UnsetType` is absent from the JSON when it is `UNSET`; one that is None is there as `null`.
    """
