"""Judging a create request: JSON of a depth and size that all can bear, the contract's fields, and paths that stay inside."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from aiohttp import web
from pydantic import ValidationError

from babysitter.cbclient.modes import MODES
from babysitter.cbclient.request import CheckedRequest, unknown
from babysitter.cbclient.wheels import WheelError, check_allowed
from common.http.errors import ApiError, check_values, parse_json_object, wrong_field
from common.nulls import without_nulls
from common.wire.base import JsonObject
from common.wire.create import CreateRequest, TemplateRequest
from common.wire.replica import Warned

BODY_LIMIT_BYTES = 1 << 20
METADATA_LIMIT_BYTES = 8192
MOST_UNKNOWN = 20
WARNED_LENGTH = 100
NOT_PASSED_ON = (
    "is kept in request.json only: what the server is to read belongs in full_config, which becomes params.yaml"
)
NOT_CARRIED_OUT = {
    "cbclient_config.modelzoo_branch": "no model zoo is installed: name packages in cbclient_config.custom_requirements",
    "gateway_config.extra": NOT_PASSED_ON,
    "platform_config": NOT_PASSED_ON,
    "catalog_config": NOT_PASSED_ON,
    "influxdb.use_influxdb": NOT_PASSED_ON,
    "invoking_user": "is kept in request.json only: job.job_labels tell the cluster whose jobs these are",
}
"""Members that a request may have and that change nothing (docs/agent.md)."""
CONTENT_TYPES = frozenset({"application/json", "application/x-www-form-urlencoded", "application/octet-stream"})
"""The second is what `curl -d` says, the third what no header at all counts as."""


def wrong(field: str, problem: str, status: int = 422) -> ApiError:
    """The refusal of one field."""
    return wrong_field(field, problem, status)


def check_content_type(request: web.Request) -> None:
    """JSON, however curl calls it, but not what a page's form could send to us unasked.

    Raises:
        ApiError: 415.
    """
    if request.content_type not in CONTENT_TYPES:
        raise ApiError(415, f"Content-Type: must be application/json, not {request.content_type}", field="Content-Type")


def parse_body(raw: bytes) -> JsonObject:
    """The JSON object in a body.

    Raises:
        ApiError: 400 for what is no JSON object, 422 for what is nested too deep or a number too large.
    """
    body = parse_json_object(raw)
    check_values(body, status=422)
    return body


def read_request(body: JsonObject, *, wheel_dirs: Sequence[Path], model_dirs: Sequence[Path]) -> CheckedRequest:
    """The create request.

    Args:
        body: What `parse_body` gave.
        wheel_dirs: Where a request's own wheel may lie.
        model_dirs: Where an absolute model_dir may lie.

    Raises:
        ApiError: 400 for a missing parameter of the mode, 422 for anything else; names the field.
    """
    _check_mode(body)
    try:
        request = CheckedRequest.model_validate_json(json.dumps(without_nulls(CheckedRequest, body)))
    except ValidationError as error:
        raise refusal(error) from error
    if len(json.dumps(request.metadata)) > METADATA_LIMIT_BYTES:
        raise wrong("metadata", f"must be at most {METADATA_LIMIT_BYTES} bytes of JSON")
    _check_paths(request, wheel_dirs, model_dirs)
    return request


def warnings(request: CheckedRequest | TemplateRequest, body: JsonObject) -> list[Warned]:
    """The members of an accepted request that are not carried out, and those that are unknown."""
    if isinstance(request, TemplateRequest):
        return _unknown(body, TemplateRequest)
    notes = [Warned(field=field, note=note) for field, note in NOT_CARRIED_OUT.items() if _member(request, field)]
    if request.gateway_config.mock_backend and not MODES[request.server_mode].is_gateway:
        notes.append(Warned(field="gateway_config.mock_backend", note="means the api_gateway modes only; was not used"))
    return notes + _unknown(body, CheckedRequest)


def _unknown(body: JsonObject, model: type[CreateRequest | TemplateRequest]) -> list[Warned]:
    names = sorted(unknown(body, model))
    notes = [Warned(field=name[:WARNED_LENGTH], note="is unknown and was not used") for name in names[:MOST_UNKNOWN]]
    if len(names) > MOST_UNKNOWN:
        notes.append(Warned(field="body", note=f"{len(names) - MOST_UNKNOWN} more members are unknown"))
    return notes


def digest(body: JsonObject) -> str:
    """A hash of the body without its `request_id`: equal for two bodies that ask for the same replica."""
    content = {name: value for name, value in body.items() if name != "request_id"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _member(request: CheckedRequest, field: str) -> object:
    """The member of that dotted name; None when a table on the way to it is absent."""
    member: object = request
    for name in field.split("."):
        member = getattr(member, name, None)
    return member


def _check_mode(body: JsonObject) -> None:
    placement, mode = body.get("placement"), body.get("server_mode")
    multibox = placement.get("multibox") if isinstance(placement, Mapping) else None
    if isinstance(multibox, str) and not multibox.strip():
        raise wrong("placement.multibox", "may be absent, but not empty", 400)
    is_platform = mode in ("platform_workload", "platform_workload_mock")
    if is_platform and not body.get("platform_config"):
        raise wrong("platform_config", f"is needed by the mode {mode}", 400)


def _check_paths(request: CheckedRequest, wheel_dirs: Sequence[Path], model_dirs: Sequence[Path]) -> None:
    """Nothing that a request names may lead out of where it belongs (E4)."""
    wheel = request.cbclient_config.cbclient_whl if request.cbclient_config else None
    if wheel is not None:
        try:
            check_allowed(Path(wheel), wheel_dirs)
        except (WheelError, OSError) as error:
            raise wrong("cbclient_config.cbclient_whl", str(error)) from error
    runconfig = request.full_config.get("runconfig", {})
    if not isinstance(runconfig, dict):
        raise wrong("full_config.runconfig", "must be an object")
    model_dir = runconfig.get("model_dir")
    if model_dir is None:
        return
    name = "full_config.runconfig.model_dir"
    if not isinstance(model_dir, str) or not model_dir.isprintable() or not model_dir:
        raise wrong(name, "must be a path")
    path = Path(model_dir)
    if ".." in path.parts:
        raise wrong(name, "may not lead out of the replica's directory")
    if path.is_absolute() and not any(path.resolve().is_relative_to(root.resolve()) for root in model_dirs):
        raise wrong(name, "must be relative, or lie under a directory of the agent's setting model_dirs")


def refusal(error: ValidationError) -> ApiError:
    """422 that names every wrong field, dotted."""
    details = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        field = ".".join(str(part) for part in fault["loc"]) or "body"
        text = fault["msg"].removeprefix("Value error, ")
        details.append({"field": field, "problem": text[:1].lower() + text[1:]})
    text = "; ".join(f"field {it['field']!r}: {it['problem']}" for it in details)
    return ApiError(422, text, field=details[0]["field"], details=details)
