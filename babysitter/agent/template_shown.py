"""PURE. What is told of a template, and the values that it is judged by."""

from collections.abc import Sequence

from babysitter.agent.template_file import IN_GROUPS, LONGEST, MOST_LISTED, ParameterRule, TemplateFile, Value
from common.wire.address import authority, bare
from common.wire.base import JsonObject
from common.wire.deployment import TemplateGlance


def schema(file: TemplateFile) -> JsonObject:
    """The JSON schema of the parameters."""
    required = [name for name, rule in file.parameters.items() if rule.required]
    properties = {name: _property(rule) for name, rule in file.parameters.items()}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _property(rule: ParameterRule) -> JsonObject:
    is_list = rule.type == "strings"
    text = {"type": "string", "minLength": 1, "maxLength": LONGEST} if rule.type in ("string", "strings") else {}
    if rule.pattern is not None:
        text["pattern"] = f"^(?:{rule.pattern})$"
    inner = {"type": rule.type, **text, **({"enum": rule.choices} if rule.choices is not None else {})}
    outer = {"type": "array", "maxItems": MOST_LISTED, "items": {**inner, "type": "string"}} if is_list else inner
    more = {
        "description": rule.description or None, "default": rule.default, "minimum": rule.minimum, "maximum": rule.maximum
    }  # fmt: skip
    return {**outer, **{name: value for name, value in more.items() if value is not None}}


def glance(name: str, file: TemplateFile, digest: str) -> TemplateGlance:
    """What is told of it."""
    return TemplateGlance(
        name=name,
        description=file.description,
        accelerators=file.needs.accelerators,
        memory_mb=file.needs.memory_mb,
        shares=file.needs.shares,
        sleeps=file.sleep is not None,
        followers=file.members.followers if file.members else 0,
        digest=digest,
        parameters=schema(file),
    )


def samples(file: TemplateFile) -> list[dict[str, Value | None]]:
    """Two sets of values to judge the template by: with nothing that may be left out, and with everything."""
    all_of = {name: _sample(rule) for name, rule in file.parameters.items()}
    least = {name: all_of[name] if rule.required else rule.default for name, rule in file.parameters.items()}
    built_in: dict[str, Value | None] = {"served_name": "m", "accelerators": 1, "port": 1024, "host": "127.0.0.1"}
    if file.members:
        built_in |= in_group(1, ["127.0.0.1", "127.0.0.2"], [1024, 1024], 1026)
    return [{**least, **built_in, "accelerators": 0}, {**all_of, **built_in}]


def in_group(rank: int, hosts: Sequence[str], ports: Sequence[int], rendezvous_port: int) -> dict[str, Value | None]:
    """What is built in for one member of a group; `hosts` and `ports` of the servers are by rank."""
    followers = [authority(host, port) for host, port in zip(hosts[1:], ports[1:], strict=True)]
    values = (rank, len(hosts), rank > 0, bare(hosts[0]), rendezvous_port, ",".join(followers))
    return dict(zip(IN_GROUPS, values, strict=True))


def _sample(rule: ParameterRule) -> Value:
    if rule.default is not None:
        return rule.default
    if rule.choices:
        return [str(rule.choices[0])] if rule.type == "strings" else rule.choices[0]
    number = rule.minimum if rule.minimum is not None else min(1.0, rule.maximum if rule.maximum is not None else 1.0)
    kinds: dict[str, Value] = {
        "string": "x",
        "strings": ["x"],
        "boolean": True,
        "integer": int(number),
        "number": number,
    }
    return kinds[rule.type]
