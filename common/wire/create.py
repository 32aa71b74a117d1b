"""The create request of the release server, as its clients write it (docs/contract.md 5): its shape.

What only a node can judge, such as whether a tag names a version, the agent checks (babysitter/cbclient/request.py).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from common.wire.base import JsonObject, Message
from common.wire.group import MOST_MEMBERS
from common.wire.words import ServerMode

Text = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""What stands in a command line must not look like a flag."""
NAMESPACE = "inf-integ"
"""The cluster's namespace where a request names none."""


class RequestPart(BaseModel):
    """Read as the release server read it: `"5"` is a number, what is unknown is not used (and told)."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )


class Placement(RequestPart):
    """Where on the cluster, and on which node of ours."""

    multibox: Name | None = None
    namespace: Name = NAMESPACE
    app_tag: Text | None = None
    node: Name | None = None


class ClientConfig(RequestPart):
    """Which client environment."""

    app_tag: Text | None = None
    cbclient_whl: Text | None = None
    client_version: Text | None = None
    modelzoo_branch: Text | None = None
    custom_requirements: tuple[Text, ...] = Field(default=(), max_length=256)
    use_uv: bool = False

    @model_validator(mode="after")
    def _names_a_build(self) -> "ClientConfig":
        if not (self.app_tag or self.cbclient_whl or self.client_version):
            raise ValueError("needs app_tag, cbclient_whl or client_version")
        return self


class ReplicaConfig(RequestPart):
    """Laid over full_config."""

    replica_config: JsonObject = Field(default_factory=dict)
    api_config: JsonObject = Field(default_factory=dict)


class GatewayConfig(RequestPart):
    """For the gateway modes."""

    mock_backend: bool = False
    extra: JsonObject = Field(default_factory=dict)


class Job(RequestPart):
    """How the cluster is to treat the jobs."""

    job_priority: Text = "p2"
    job_timeout_s: int = Field(default=86_400, ge=1)
    job_labels: tuple[Text, ...] = Field(default=(), max_length=64)
    disable_scheduler: bool = False


class Timeouts(RequestPart):
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


class Influxdb(RequestPart):
    """Passed on as it is."""

    model_config = ConfigDict(extra="allow")

    use_influxdb: bool = False
    host: str | None = None


class CreateRequest(RequestPart):
    """One replica wanted."""

    server_mode: ServerMode
    model_name: Text
    full_config: JsonObject = Field(default_factory=dict)
    placement: Placement = Field(default_factory=Placement)
    cbclient_config: ClientConfig | None = None
    replica_config: ReplicaConfig = Field(default_factory=ReplicaConfig)
    platform_config: JsonObject | None = None
    gateway_config: GatewayConfig = Field(default_factory=GatewayConfig)
    catalog_config: JsonObject | None = None
    job: Job | None = None
    timeouts: Timeouts | None = None
    influxdb: Influxdb | None = None
    wait_for_ready: bool = False
    run_diagnostics: bool = False
    invoking_user: Text | None = None
    request_id: Text | None = None
    metadata: JsonObject = Field(default_factory=dict)
    accelerators: int | None = Field(default=None, ge=0, le=1024)
    memory_mb: int | None = Field(default=None, ge=0)

    @property
    def app_tag(self) -> str | None:
        """The build's tag: the client's own, else the placement's."""
        return (self.cbclient_config.app_tag if self.cbclient_config else None) or self.placement.app_tag

    @property
    def job_priority(self) -> str | None:
        """As asked for; None leaves params.yaml to full_config."""
        return self.job.job_priority if self.job else None


class BackendChoice(RequestPart):
    """Which template of the node, and its parameters; the template says which there are, and of what type."""

    template: Name
    parameters: JsonObject = Field(default_factory=dict)


class NodePlacement(RequestPart):
    """On which node."""

    node: Name | None = None


class GroupPlace(RequestPart):
    """Member `group` of a create request: which of how many it is; `rank` 0 leads."""

    rank: int = Field(ge=0, lt=MOST_MEMBERS)
    size: int = Field(ge=2, le=MOST_MEMBERS)


class TemplateRequest(RequestPart):
    """One replica wanted, made of a template.

    `model_name` is the name that it is served by; unset, the parameter `model`. `accelerators` and `memory_mb` replace what
    the template needs. With `group` it is reserved, and begins when it is told of all members.
    """

    backend: BackendChoice
    model_name: Text | None = None
    placement: NodePlacement = Field(default_factory=NodePlacement)
    accelerators: int | None = Field(default=None, ge=0, le=1024)
    memory_mb: int | None = Field(default=None, ge=0)
    timeouts: Timeouts | None = None
    wait_for_ready: bool = False
    request_id: Text | None = None
    metadata: JsonObject = Field(default_factory=dict)
    group: GroupPlace | None = None


class CreateBody(RootModel):  # type: ignore[type-arg] # a parameter would have pydantic build both as this is imported
    """Body of `POST /api/v1/replicas`: a release server's replica, or one of a template."""

    model_config = ConfigDict(defer_build=True)

    root: CreateRequest | TemplateRequest


class PlacementGlance(Message, frozen=True, kw_only=True):
    """The part of a request's `placement` that an info shows, and that chooses a node."""

    node: object = None
    multibox: str | None = None
    namespace: str | None = None


class RequestGlance(Message, frozen=True, kw_only=True):
    """What is read of a `CreateRequest` by whoever does not judge it: a registry, and an agent that has taken it before."""

    server_mode: str | None = None
    model_name: str | None = None
    request_id: str | None = None
    placement: PlacementGlance = PlacementGlance()
    metadata: JsonObject = {}
