"""A deployment's specification, as people write it (docs/adr/0013). Durations are seconds.

It stands apart from what programs tell one another of deployments (common/wire/deployment.py): every process reads that, and
pydantic's models take long to make.
"""

from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.wire.base import JsonObject
from common.wire.create import Name, Text
from common.wire.group import MOST_MEMBERS

ParameterValue: TypeAlias = str | int | float | bool | list[str]
"""One parameter of a template; the template says which type."""


class SpecPart(BaseModel):
    """An unknown member is an error: it is a typing error, most likely."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )


class ReplicaRange(SpecPart):
    """How many replicas; with `min` 0 none runs until somebody asks for the model."""

    min: int = Field(default=1, ge=0, le=1000)
    max: int = Field(default=1, ge=1, le=1000)

    @model_validator(mode="after")
    def _is_a_range(self) -> "ReplicaRange":
        if self.max < self.min:
            raise ValueError("max must be at least min")
        return self


class ScaleRule(SpecPart):
    """wanted = ceil((in flight + waiting) / in_flight_per_replica), between `min` and `max`."""

    in_flight_per_replica: int = Field(default=8, ge=1, le=100_000)
    up_after_s: float = Field(default=0, ge=0, le=86_400)
    down_after_s: float = Field(default=300, ge=0, le=86_400)


class DeploymentPlacement(SpecPart):
    """Which nodes may have it; empty: all. `labels` must all be those of the node; `spread`: the emptiest node first."""

    nodes: tuple[Name, ...] = Field(default=(), max_length=1000)
    labels: dict[Name, Text] = Field(default_factory=dict)
    spread: bool = False


class DeploymentSpec(SpecPart):
    """What should run: a `template` with its parameters, or a release server's create `request`.

    `model` is the name that clients ask for (unset: the deployment's). `accelerators` and `memory_mb` replace what the
    template needs, and `followers` how many members its groups have beside the leader. `idle_s`: replicas above `min` go after so long without a request (0: never). `dwell_s`: a replica that
    was started is not taken away for so long. `max_surge`: how many a rollout replaces at once (unset: one). Of two deployments that want the same accelerators, the higher `priority` has
    them.
    """

    model: Text | None = None
    template: Name | None = None
    parameters: dict[Name, ParameterValue] = Field(default_factory=dict)
    request: JsonObject | None = None
    accelerators: int | None = Field(default=None, ge=0, le=1024)
    memory_mb: int | None = Field(default=None, ge=0)
    followers: int | None = Field(default=None, ge=1, lt=MOST_MEMBERS)
    replicas: ReplicaRange = Field(default_factory=ReplicaRange)
    scale: ScaleRule = Field(default_factory=ScaleRule)
    idle_s: float = Field(default=0, ge=0, le=30 * 86_400)
    dwell_s: float = Field(default=60, ge=0, le=86_400)
    max_surge: int | None = Field(default=None, ge=1, le=1000)
    placement: DeploymentPlacement = Field(default_factory=DeploymentPlacement)
    priority: int = Field(default=0, ge=-1000, le=1000)

    @model_validator(mode="after")
    def _says_what_runs(self) -> "DeploymentSpec":
        if (self.template is None) == (self.request is None):
            raise ValueError("needs either template or request")
        if self.request is not None and (self.parameters or self.followers):
            raise ValueError("parameters and followers belong to a template")
        return self


RUNS: tuple[str, ...] = ("model", "template", "parameters", "request", "accelerators", "memory_mb", "followers")
"""Members of a specification that a running replica depends on: a change of these is a new revision and rolls."""
