"""A fleet file: `deployments`, a table of specifications by name; and the values that flags give."""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common.wire.base import JsonObject
from ctl import late
from ctl.from_configs import MEMBER

if TYPE_CHECKING:
    import pydantic

    from common.wire import specification
else:
    pydantic, specification = map(late.module, ("pydantic", "common.wire.specification"))

MOST = 1000
"""Deployments in one file."""


class UnusableFleet(ValueError):
    """The file is no fleet file; the text names the deployment, the member and the remedy, a line for each fault."""


def deployments(content: Mapping[str, Any]) -> dict[str, JsonObject]:
    """The specifications by name, each of them checked as far as that can be done without a registry.

    Raises:
        UnusableFleet: Something is wrong; all of it is said.
    """
    if others := sorted(str(key) for key in content if key != MEMBER):
        raise UnusableFleet(f"{others[0]}: unknown; everything stands under '{MEMBER}'")
    listed = content.get(MEMBER)
    if not isinstance(listed, Mapping):
        raise UnusableFleet(f"{MEMBER}: missing; write '{MEMBER}:' and under it NAME: and its specification")
    if len(listed) > MOST:
        raise UnusableFleet(f"{MEMBER}: {len(listed)}, at most {MOST} in one file")
    faults: list[str] = []
    models: dict[str, str] = {}
    for key, spec in listed.items():
        name = str(key)
        faults += [f"{name}: {fault}" for fault in spec_faults(spec)]
        model = spec.get("model") if isinstance(spec, Mapping) else None
        if (other := models.setdefault(str(model or name), name)) != name:
            faults.append(f"{name}: model {model or name!r} is {other}'s already; one deployment for each model")
    if faults:
        raise UnusableFleet("\n".join(faults))
    return {str(name): dict(spec) for name, spec in listed.items()}


def spec_faults(spec: object) -> list[str]:
    """What is wrong with a specification, by member."""
    if not isinstance(spec, Mapping):
        return [f"must be a table, not {type(spec).__name__}"]
    try:
        specification.DeploymentSpec.model_validate_json(json.dumps(spec, default=str))
    except pydantic.ValidationError as error:
        listed = error.errors(include_url=False, include_context=False, include_input=False)
        return [": ".join(filter(None, (".".join(map(str, one["loc"])), _plain(one["msg"])))) for one in listed]
    except (TypeError, ValueError) as error:
        return [str(error)]
    return []


def _plain(text: str) -> str:
    return text.removeprefix("Value error, ")


def replica_range(text: str) -> dict[str, int]:
    """`2` or `0..2`.

    Raises:
        ValueError: It is neither.
    """
    found = re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", text)
    if found is None:
        raise ValueError(f"{text!r} is neither a number nor a range such as 0..2")
    least, most = int(found[1]), int(found[2] or found[1])
    if most < max(least, 1):
        raise ValueError(f"{text!r}: the most must be at least {max(least, 1)}")
    return {"min": least, "max": most}


def parameters(words: list[str], schema: Mapping[str, Any]) -> JsonObject:
    """`KEY=VALUE` words as typed values: as the template's schema says, where it is known, else as they look.

    Raises:
        ValueError: A word is of another shape.
    """
    known = schema.get("properties")
    made: JsonObject = {}
    for word in words:
        key, mark, text = word.partition("=")
        if not mark or not key:
            raise ValueError(f"{word!r}: write KEY=VALUE")
        rule = known.get(key) if isinstance(known, Mapping) else None
        made[key] = _value(text, str(rule.get("type", "")) if isinstance(rule, Mapping) else "")
    return made


def _value(text: str, kind: str) -> Any:
    if kind == "string":
        return text
    if kind == "array" and not text.startswith("["):
        return text.split(",")
    try:
        value = json.loads(text)
    except ValueError:
        return text
    fits = isinstance(value, bool | int | float) or (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    )
    return value if fits else text
