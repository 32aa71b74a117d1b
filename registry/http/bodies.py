"""What clients may send: pydantic models of the border, and the one way from a fault to a 400 that names the field."""

from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
)

from common.discovery.limits import METADATA_LIMIT_BYTES, MODELS_LIMIT_BYTES
from common.http.errors import ApiError, check_values
from common.names import is_host, is_service_name
from common.nulls import without_nulls
from common.wire.base import JsonObject

MODELS = ("models", "models_list")


def _name(text: str) -> str:
    if not is_service_name(text):
        raise ValueError("must be 1 to 128 of A-Z a-z 0-9 . _ - and begin with a letter or a digit")
    return text


def _host(text: str) -> str:
    if not is_host(text):
        raise ValueError("must be a host name or an IP address")
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not contain control characters")
    return text


def _url(text: str) -> str:
    """`http(s)://host[:port]` and nothing more: whatever follows would be attacker text in somebody's request line."""
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise ValueError("must be printable ASCII without spaces")
    parts = urlsplit(text)  # raises ValueError for a malformed host
    if parts.scheme not in {"http", "https"}:
        raise ValueError("must begin with http:// or https://")
    if not parts.hostname or not is_host(parts.hostname) or "@" in parts.netloc:
        raise ValueError("must name a host, without user or password")
    if parts.port == 0:
        raise ValueError("must have a port from 1 to 65535")
    if parts.path not in {"", "/"} or "?" in text or "#" in text:
        raise ValueError("must end after the host and port: no path, query or fragment")
    return text.rstrip("/")


def _metadata(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    models = {name: value[name] for name in MODELS if name in value}
    if len(msgspec.json.encode({name: value[name] for name in value.keys() - models.keys()})) > METADATA_LIMIT_BYTES:
        raise ValueError(f"must be at most {METADATA_LIMIT_BYTES} bytes of JSON, without its models")
    if len(msgspec.json.encode(models)) > MODELS_LIMIT_BYTES:
        raise ValueError(f"must have at most {MODELS_LIMIT_BYTES} bytes of models")
    return {name: member for name, member in value.items() if member is not None}


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic turns ValueError into a field's fault
    return value


Name = Annotated[StrictStr, AfterValidator(_name)]
Host = Annotated[StrictStr, Field(max_length=253), AfterValidator(_host)]
Port = Annotated[StrictInt, Field(ge=1, le=65535)]
Hostname = Annotated[StrictStr, Field(max_length=253), AfterValidator(_printable)]
Url = Annotated[StrictStr, Field(max_length=512), AfterValidator(_url)]
Status = Annotated[StrictStr, Field(min_length=1, max_length=64), AfterValidator(_printable)]
Reason = Annotated[StrictStr, Field(max_length=300), AfterValidator(_printable)]
Metadata = Annotated[JsonObject, BeforeValidator(_metadata)]
Weight = Annotated[float, BeforeValidator(_not_bool), Field(ge=0, le=1_000_000, allow_inf_nan=False)]
InstanceId = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Incarnation = Annotated[StrictInt, Field(ge=0, le=2**53)]
Ttl = Annotated[float, BeforeValidator(_not_bool), Field(ge=0.5, le=86_400)]


class Body(BaseModel):
    """Unknown members are ignored: clients of both ancestors send some."""

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)


class RegisterBody(Body):
    """`POST /services`."""

    name: Name
    host: Host
    port: Port
    hostname: Hostname
    url: Url
    status: Status
    timestamp: Any = None
    metadata: Metadata = {}
    weight: Weight | None = None
    instance_id: InstanceId | None = None
    incarnation: Incarnation = 0
    ttl_s: Ttl | None = None


class UpdateBody(Body):
    """`PUT /services/{name}`: any of the fields, each replaced whole, as clients of both ancestors expect."""

    host: Host | None = None
    port: Port | None = None
    hostname: Hostname | None = None
    url: Url | None = None
    status: Status | None = None
    metadata: Metadata | None = None
    weight: Weight | None = None


class RouterPresence(Body):
    """What a router says of itself with its watch."""

    router: Name
    router_url: Url


class FailingBody(Body):
    """`POST /v1/routers/{name}/failing`: servers that call themselves healthy, and why a router sends them nothing."""

    failing: Annotated[dict[Name, Reason], Field(max_length=4096)]


Model = TypeVar("Model", bound=Body)


def parse(model: type[Model], body: JsonObject) -> Model:
    """Validate a body.

    Raises:
        ApiError: 400; the message and `details` name every bad field, `field` the first.
    """
    check_values(body, status=400)
    try:
        return model.model_validate(without_nulls(model, body))
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        details = [
            {"field": str(fault["loc"][0]), "problem": _problem(fault["type"], fault["msg"])} for fault in faults
        ]
        missing = [detail["field"] for detail in details if detail["problem"] == "missing"]
        problems = [f"missing required field: {', '.join(missing)}"] if missing else []
        problems += [f"field {it['field']!r}: {it['problem']}" for it in details if it["problem"] != "missing"]
        raise ApiError(400, "; ".join(problems), field=details[0]["field"], details=details) from error


def _problem(kind: str, message: str) -> str:
    if kind == "missing":
        return "missing"
    text = message.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
