"""Whether the fleet as it is now can have what a specification asks for: refused where no agent could ever make it."""

from collections.abc import Mapping

from common.http.errors import ApiError
from common.wire.deployment import DeploymentSpec, TemplateGlance
from registry.deployments import fit
from registry.deployments.model import Node, Wish
from registry.deployments.parameters import faults


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
    versions: dict[str, TemplateGlance] = {one.digest: one for one in having}
    wrong = [faults(spec.parameters, one.parameters) for one in versions.values()]
    if all(wrong):
        details = [{"field": f"parameters.{key}", "problem": problem} for key, problem in wrong[0].items()]
        text = "; ".join(f"field {it['field']!r}: {it['problem']}" for it in details)
        raise ApiError(422, text, field=details[0]["field"], details=details)
