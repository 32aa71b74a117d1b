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
from common.http.errors import ApiError
from common.names import is_host, is_service_name
from common.nulls import without_nulls

MODELS = ("models", "models_list")
NESTING_LIMIT = 64
LARGEST_INT = 2**63


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
Metadata = Annotated[dict[str, Any], BeforeValidator(_metadata)]
Weight = Annotated[float, BeforeValidator(_not_bool), Field(ge=0, le=1_000_000, allow_inf_nan=False)]
InstanceId = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Incarnation = Annotated[StrictInt, Field(ge=0, le=2**53)]
Ttl = Annotated[float, BeforeValidator(_not_bool), Field(ge=0.5, le=86_400)]


class Body(BaseModel):
    """Unknown members are ignored: clients of both ancestors send some."""

    model_config = ConfigDict(extra="ignore", frozen=True)


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


class HeartbeatBody(Body):
    """`POST /services/{name}/heartbeat`: nothing, some of these, or a whole replica report."""

    status: Status | None = None
    instance_id: InstanceId | None = None
    incarnation: Incarnation | None = None


class CreateReplicaBody(Body):
    """`POST /api/v1/replicas`, as far as the registry looks at it: the node's agent judges it."""

    server_mode: StrictStr
    model_name: StrictStr
    placement: dict[str, Any] = {}
    request_id: StrictStr | None = None


class StopReplicaBody(Body):
    """`POST /api/v1/replicas/{id}/stop`."""

    force: bool = False


Model = TypeVar("Model", bound=Body)


def parse(model: type[Model], body: dict[str, Any]) -> Model:
    """Validate a body.

    Raises:
        ApiError: 400; the message and `details` name every bad field, `field` the first.
    """
    _check_values(body)
    try:
        return model.model_validate(without_nulls(model, body))
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        details = [
            {"field": str(fault["loc"][0]), "problem": _problem(fault["type"], fault["msg"])} for fault in faults
        ]
        missing = [detail["field"] for detail in details if detail["problem"] == "missing"]
        said = [f"missing required field: {', '.join(missing)}"] if missing else []
        said += [f"field {it['field']!r}: {it['problem']}" for it in details if it["problem"] != "missing"]
        raise ApiError(400, "; ".join(said), field=details[0]["field"], details=details) from error


def _problem(kind: str, message: str) -> str:
    if kind == "missing":
        return "missing"
    text = message.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def _check_values(body: dict[str, Any]) -> None:
    """Refuse what JSON can say and our encoders or other parsers cannot (docs/faults.md G14, M13)."""
    stack: list[tuple[Any, int, str]] = [(value, 1, key) for key, value in body.items()]
    while stack:
        value, depth, field = stack.pop()
        if isinstance(value, dict | list):
            if depth > NESTING_LIMIT:
                raise ApiError(400, f"field {field!r} is nested deeper than {NESTING_LIMIT}", field=field)
            inner = value.values() if isinstance(value, dict) else value
            stack.extend((item, depth + 1, field) for item in inner)
        elif isinstance(value, int) and not -LARGEST_INT <= value < LARGEST_INT:
            raise ApiError(400, f"field {field!r} holds an integer beyond 64 bits", field=field)
