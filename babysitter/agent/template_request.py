"""A create request that names a template: judged against the node's templates, and made into a babysitter's settings."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from pydantic import ValidationError

from babysitter.agent import template_file, template_shown
from babysitter.agent.requests import METADATA_LIMIT_BYTES, refusal, wrong
from babysitter.agent.template_file import TemplateError, TemplateFile, Value
from babysitter.agent.templates import Template, judge
from common.http.errors import ApiError
from common.nulls import without_nulls
from common.wire.base import JsonObject
from common.wire.create import TemplateRequest
from common.wire.deployment import RELEASE_SERVER
from common.wire.group import GroupMember

MODEL_NAME_LIMIT = 256


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a request makes of a template; its needs are the template's own word, which the request may replace."""

    template: str
    model_name: str
    file: TemplateFile
    values: Mapping[str, Value | None]

    def job(self, *, accelerators: int) -> JsonObject:
        """What the template says of the job, where a scheduler runs it."""
        given = {**self.values, "served_name": self.model_name, "accelerators": accelerators}
        return template_file.render_job(self.file, given)

    def rendered(
        self, *, host: str, port: int, accelerators: int, rank: int = 0, members: Sequence[GroupMember] = ()
    ) -> bytes:
        """The content of its backend.json; for a member of a group with all of them, by rank.

        Raises:
            ApiError: 422; a babysitter would refuse what the parameters make.
        """
        built_in: dict[str, Value | None] = {
            "served_name": self.model_name, "accelerators": accelerators, "host": host, "port": port
        }  # fmt: skip
        if members:
            hosts, ports = [one.host for one in members], [one.port for one in members]
            built_in |= template_shown.in_group(rank, hosts, ports, members[0].rendezvous_port)
        try:
            content = template_file.render(self.file.of_rank(rank), {**self.values, **built_in})
            if members:  # none is started again alone; nobody waits for the requests of a follower
                last = {"max_restarts": 0, **({"drain_timeout_s": 0} if rank else {})}
                content["babysitter"] = {**content.get("babysitter", {}), **last}
            judge(content)
        except TemplateError as error:
            raise wrong("backend.parameters", f"make no server of template {self.template!r}: {error}") from error
        content["metadata"] = {**content.get("metadata", {}), "template": self.template}
        return json.dumps(content, indent=1).encode() + b"\n"


def read_recipe(raw: bytes) -> Recipe:
    """A recipe that `msgspec.json.encode` wrote, where another machine renders it.

    Raises:
        msgspec.MsgspecError: It is none.
    """
    return msgspec.json.decode(raw, type=Recipe)


def read_template_request(body: JsonObject) -> TemplateRequest:
    """The request in a body that has `backend`; its parameters are not judged yet.

    Raises:
        ApiError: 422; names the field.
    """
    if body.get("server_mode") is not None:
        raise wrong("server_mode", "is a release server's, and backend names a template: leave one of them out")
    try:
        request = TemplateRequest.model_validate_json(json.dumps(without_nulls(TemplateRequest, body)))
    except ValidationError as error:
        raise refusal(error) from error
    if len(json.dumps(request.metadata)) > METADATA_LIMIT_BYTES:
        raise wrong("metadata", f"must be at most {METADATA_LIMIT_BYTES} bytes of JSON")
    return request


def make_recipe(request: TemplateRequest, templates: Mapping[str, Template]) -> Recipe:
    """What the request makes of the template that it names.

    Raises:
        ApiError: 422; no such template, or a parameter is of no use; names the field.
    """
    name = request.backend.template
    template = templates.get(name)
    if name == RELEASE_SERVER.name:
        raise wrong(
            "backend.template", f"{name}'s replicas are made by a request with server_mode, and without backend"
        )
    if template is None:
        raise wrong("backend.template", f"there is no {name!r} here; there are: {', '.join(templates) or 'none'}")
    if template.file is None:
        raise wrong("backend.template", f"the file of {name!r} is of no use: {template.error}")
    if bool(template.file.members) is not bool(request.group):
        kind = "makes groups, which a deployment asks for" if template.file.members else "makes no groups"
        raise wrong("group", f"template {name!r} {kind}")
    values, faults = template_file.judged(template.file, request.backend.parameters)
    if faults:
        details = [{"field": f"backend.parameters.{key}", "problem": text} for key, text in faults.items()]
        text = "; ".join(f"field {it['field']!r}: {it['problem']}" for it in details)
        raise ApiError(422, text, field=details[0]["field"], details=details)
    return Recipe(template=name, model_name=_model_name(request, values), file=template.file, values=values)


def _model_name(request: TemplateRequest, values: Mapping[str, Value | None]) -> str:
    name = request.model_name if request.model_name is not None else values.get("model")
    if not isinstance(name, str) or len(name) > MODEL_NAME_LIMIT:
        raise wrong("model_name", f"is needed, of at most {MODEL_NAME_LIMIT} characters: the name to be served by")
    if problem := template_file.text_fault(name):
        raise wrong("model_name", problem)
    return name
