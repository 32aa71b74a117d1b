"""PURE. A template's parameters judged by the JSON schema that its node told: type, range, choice, what is required."""

from collections.abc import Mapping

from common.wire.base import JsonObject

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
}


def faults(parameters: Mapping[str, object], schema: JsonObject) -> dict[str, str]:
    """What is wrong, by parameter; nothing is judged by a schema without properties, which was too large to be told."""
    known = schema.get("properties")
    if not isinstance(known, dict) or (not known and schema.get("additionalProperties") is not False):
        return {}
    found = {name: "missing" for name in schema.get("required", ()) if name not in parameters}
    for name, value in parameters.items():
        if name in known:
            fault = _fault(value, known[name])
            if fault:
                found[name] = fault
        elif schema.get("additionalProperties") is False:
            found[name] = f"the template has no such parameter; it has: {', '.join(sorted(known)) or 'none'}"
    return found


def _fault(value: object, schema: JsonObject) -> str | None:
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds or []
    number = value if isinstance(value, int | float) else None
    text = value if isinstance(value, str) else None
    judged = (
        (bool(kinds) and not any(_is(value, kind) for kind in kinds), f"must be of type {' or '.join(kinds)}"),
        ("enum" in schema and value not in schema["enum"], f"must be one of {schema.get('enum')}"),
        (number is not None and number < schema.get("minimum", number), f"must be at least {schema.get('minimum')}"),
        (number is not None and number > schema.get("maximum", number), f"must be at most {schema.get('maximum')}"),
        (
            text is not None and len(text) > schema.get("maxLength", len(text)),
            f"must have at most {schema.get('maxLength')} characters",
        ),
        (
            text is not None and len(text) < schema.get("minLength", 0),
            f"must have at least {schema.get('minLength')} characters",
        ),
    )
    return next((fault for wrong, fault in judged if wrong), None)


def _is(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES.get(kind, (object,)))
