"""The create request of the release server, as it stands in request.json (docs/contract.md 5)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from babysitter.cbclient.packages import RequirementError, check_custom
from babysitter.cbclient.versions import TagError, version_of
from common.atomic_file import read_bounded
from common.nulls import without_nulls
from common.service import ConfigurationError

LIMIT_BYTES = 1 << 20
Text = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""What stands in a command line must not look like a flag."""
ServerMode = Literal[
    "inference",
    "replica",
    "replica_mock",
    "api_gateway",
    "api_gateway_mock",
    "platform_workload",
    "platform_workload_mock",
]


class _Part(BaseModel):
    """Read as the release server read it: `"5"` is a number, what is unknown is not used (and told)."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Placement(_Part):
    """Where on the cluster, and on which node of ours."""

    multibox: Name | None = None
    namespace: Name = "inf-integ"
    app_tag: Text | None = None
    node: Name | None = None

    @field_validator("app_tag")
    @classmethod
    def _tag_is_a_version(cls, value: str | None) -> str | None:
        return _check_tag(value)


class ClientConfig(_Part):
    """Which client environment."""

    app_tag: Text | None = None
    cbclient_whl: Text | None = None
    client_version: Text | None = None
    modelzoo_branch: Text | None = None
    custom_requirements: tuple[Text, ...] = Field(default=(), max_length=256)
    use_uv: bool = False

    @field_validator("app_tag", "client_version")
    @classmethod
    def _tag_is_a_version(cls, value: str | None) -> str | None:
        return _check_tag(value)

    @field_validator("custom_requirements")
    @classmethod
    def _requirements_name_packages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(check_custom(text) for text in value)
        except RequirementError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _names_a_build(self) -> "ClientConfig":
        if not (self.app_tag or self.cbclient_whl or self.client_version):
            raise ValueError("needs app_tag, cbclient_whl or client_version")
        return self


class ReplicaConfig(_Part):
    """Laid over full_config."""

    replica_config: dict[str, Any] = Field(default_factory=dict)
    api_config: dict[str, Any] = Field(default_factory=dict)


class GatewayConfig(_Part):
    """For the gateway modes."""

    mock_backend: bool = False
    extra: dict[str, Any] = Field(default_factory=dict)


class Job(_Part):
    """How the cluster is to treat the jobs."""

    job_priority: Text = "p2"
    job_timeout_s: int = Field(default=86_400, ge=1)
    job_labels: tuple[Text, ...] = Field(default=(), max_length=64)
    disable_scheduler: bool = False


class Timeouts(_Part):
    """How long each phase may take, in seconds.

    `port_discovery_timeout_s`: until the server listens. `readiness_timeout_s`: until it is ready. `poll_interval_s`:
    between two looks until then. `health_check_timeout_s`: of one look. One that is not asked for leaves the operator's
    settings in force. The first two say how long a client wants to wait: what takes longer is late, and goes on, for no
    wait may end a server that compiles for hours (A9).
    """

    port_discovery_timeout_s: float = Field(default=600, gt=0)
    readiness_timeout_s: float = Field(default=1800, gt=0)
    poll_interval_s: float = Field(default=5, gt=0)
    health_check_timeout_s: float = Field(default=120, gt=0)

    def asked(
        self,
        name: Literal["port_discovery_timeout_s", "readiness_timeout_s", "poll_interval_s", "health_check_timeout_s"],
    ) -> float | None:
        """The value of a field that the request names itself, else None."""
        return float(getattr(self, name)) if name in self.model_fields_set else None


class Influxdb(_Part):
    """Passed on as it is."""

    model_config = ConfigDict(extra="allow")

    use_influxdb: bool = False
    host: str | None = None


class CreateRequest(_Part):
    """One replica wanted."""

    server_mode: ServerMode
    model_name: Text
    full_config: dict[str, Any] = Field(default_factory=dict)
    placement: Placement = Field(default_factory=Placement)
    cbclient_config: ClientConfig | None = None
    replica_config: ReplicaConfig = Field(default_factory=ReplicaConfig)
    platform_config: dict[str, Any] | None = None
    gateway_config: GatewayConfig = Field(default_factory=GatewayConfig)
    catalog_config: dict[str, Any] | None = None
    job: Job | None = None
    timeouts: Timeouts | None = None
    influxdb: Influxdb | None = None
    wait_for_ready: bool = False
    run_diagnostics: bool = False
    invoking_user: Text | None = None
    request_id: Text | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @property
    def app_tag(self) -> str | None:
        """The build's tag: the client's own, else the placement's."""
        return (self.cbclient_config.app_tag if self.cbclient_config else None) or self.placement.app_tag

    @property
    def job_priority(self) -> str | None:
        """As asked for; None leaves params.yaml to full_config."""
        return self.job.job_priority if self.job else None


def unknown(body: Mapping[str, Any], model: type[BaseModel] = CreateRequest, path: str = "") -> list[str]:
    """Dotted names of the members of `body` that nothing here reads."""
    if model.model_config.get("extra") == "allow":
        return []
    found = []
    for name, value in body.items():
        field = model.model_fields.get(name)
        if field is None:
            found.append(f"{path}{name}")
            continue
        part = next((it for it in (field.annotation, *get_args(field.annotation)) if _is_model(it)), None)
        if part is not None and isinstance(value, Mapping):
            found += unknown(value, part, f"{path}{name}.")
    return found


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def load(path: Path) -> CreateRequest:
    """The request in a file.

    Raises:
        ConfigurationError: The file is missing or its content no request; names file and field.
    """
    try:
        body = json.loads(read_bounded(path, limit_bytes=LIMIT_BYTES))
        return CreateRequest.model_validate(without_nulls(CreateRequest, body) if isinstance(body, dict) else body)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        told = [f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise ConfigurationError("\n".join(told)) from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _check_tag(value: str | None) -> str | None:
    if value is not None:
        try:
            version_of(value)
        except TagError as error:
            raise ValueError(str(error)) from error
    return value
