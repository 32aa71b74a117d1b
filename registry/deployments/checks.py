"""Whether the fleet as it is now can have what a specification asks for: refused where no agent could ever make it."""

from collections.abc import Mapping

from common.http.errors import ApiError
from common.wire.base import JsonObject
from common.wire.deployment import TemplateGlance
from common.wire.specification import DeploymentSpec
from registry.deployments import fit
from registry.deployments.model import Node, Wish

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
}


def judge(name: str, spec: DeploymentSpec, nodes: Mapping[str, Node]) -> list[str]:
    """What stands in its way now, for the caller to know.

    Raises:
        ApiError: 422; agents are registered and none has the template, or the template takes no such parameters.
    """
    if not nodes:
        return ["no node's agent is registered; it starts when there is one"]
    if not any(node.templates for node in nodes.values()) and spec.template is not None:
        return ["no node's agent has told of any template; it starts when one has this"]
    if spec.template is not None:
        _judge_template(spec, spec.template, nodes)
    wish = Wish(
        name=name,
        revision=0,
        template=spec.template,
        accelerators=spec.accelerators,
        memory_mb=spec.memory_mb,
        followers=spec.followers,
        nodes=spec.placement.nodes,
        labels=spec.placement.labels,
    )
    options = fit.allowed(wish, [fit.space_of(node, {}) for node in nodes.values()])
    never = fit.why_never(wish, options, list(nodes.values()))
    return [] if never is None else [never]


def _judge_template(spec: DeploymentSpec, template: str, nodes: Mapping[str, Node]) -> None:
    """Of several versions of the template one at least must take the parameters."""
    having = [node.templates[template] for node in nodes.values() if template in node.templates]
    if not having:
        there = ", ".join(sorted({known for node in nodes.values() for known in node.templates})) or "none"
        raise ApiError(422, f"template {template!r} is on no node; there are: {there}", field="template")
    if spec.followers and not any(one.followers for one in having):
        raise ApiError(422, f"field 'followers': template {template!r} makes no groups", field="followers")
    versions: dict[str, TemplateGlance] = {one.digest: one for one in having}
    wrong = [faults(spec.parameters, one.parameters) for one in versions.values()]
    if all(wrong):
        details = [{"field": f"parameters.{key}", "problem": problem} for key, problem in wrong[0].items()]
        text = "; ".join(f"field {it['field']!r}: {it['problem']}" for it in details)
        raise ApiError(422, text, field=details[0]["field"], details=details)


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
