"""Deployments: how they stand, as the registry answers, and what is called for (docs/adr/0013).

What should run, as people write it, is in common/wire/specification.py. Durations are seconds, times ISO 8601.
"""

from enum import StrEnum
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from common.wire.base import JsonObject, Message

REQUEST_PREFIX = "dep-"
"""A replica that a registry asked for has a `request_id` that begins so: `dep-UID-NUMBER`."""
DEPLOYMENT_KEY = "deployment"
"""Member of a replica's and a record's `metadata`: the deployment that it belongs to."""
REVISION_KEY = "revision"
"""Member likewise: the revision of that deployment which it runs."""


class DeploymentPhase(StrEnum):
    """How a deployment stands, in one word."""

    COLD = "cold"
    """None runs and none is wanted; a request starts one."""
    ASLEEP = "asleep"
    QUEUED = "queued"
    """It is to start, and waits for accelerators that others have."""
    STARTING = "starting"
    READY = "ready"
    ROLLING = "rolling"
    """Ready, while replicas of another revision replace those that run."""
    STOPPING = "stopping"
    UNSCHEDULABLE = "unschedulable"
    """No node could ever take it as they are now; the reason says why."""
    FAILING = "failing"
    """Its starts fail; the reason says why and when the next one is tried."""


class ModelState(Message, frozen=True, kw_only=True):
    """What a router needs of one deployment: what it tells those who wait for its model.

    Args:
        stage: What the start does now, such as `loading`.
        percent: How much of the start's usual time is over, 0 to 99; absent where nothing is known of earlier starts.
        eta_s: Seconds until it should be ready; absent likewise.
        position: Place among deployments that wait for accelerators, from 1.
        hold: It makes sense to wait: it is, or can be, started.
    """

    model: str
    deployment: str
    phase: DeploymentPhase
    stage: str | UnsetType = UNSET
    percent: int | UnsetType = UNSET
    eta_s: float | UnsetType = UNSET
    position: int | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    hold: bool = True


class ModelDemand(Message, frozen=True, kw_only=True):
    """What a router has of one deployment's model: requests under way and waiting now; `requests` counts all, and only rises.

    A router that was restarted counts from 0 again.
    """

    in_flight: int = 0
    waiting: int = 0
    requests: int = 0


class Demand(Message, frozen=True, kw_only=True):
    """Body of `POST /v1/routers/{name}/demand`, each second and as soon as somebody waits: by model."""

    models: dict[str, ModelDemand] = {}


class DemandAnswer(Message, frozen=True, kw_only=True):
    """Every deployment there is, as its model's clients should hear of it."""

    models: list[ModelState] = []


class Accelerator(Message, frozen=True, kw_only=True):
    """One accelerator of a node, in its agent's heartbeat. `index` is what the assigning variable says.

    Args:
        replicas: Ids of the replicas that have it; `claims` are files of hand-made babysitters that do.
        shared_mb: What its replicas were promised together, where they share it.
    """

    index: int
    kind: str
    memory_mb: int = 0
    used_mb: int | UnsetType = UNSET
    busy_percent: int | UnsetType = UNSET
    replicas: list[str] = []
    claims: list[str] = []
    shared_mb: int = 0


class AcceleratorReading(Message, frozen=True, kw_only=True):
    """What one accelerator's driver told last; a heartbeat has it apart, and whoever shows it puts it into `Accelerator`."""

    index: int
    used_mb: int | UnsetType = UNSET
    busy_percent: int | UnsetType = UNSET


class NodeInfo(Message, frozen=True, kw_only=True):
    """One node, as `GET /api/v1/nodes` shows it.

    Args:
        url: Its agent's.
        live: Replicas that hold a place, of which there are `capacity`.
        room: More replicas that it takes; null: its agent does not say.
        away: Nothing was heard of it for longer than its lease.
        draining: It gets no new replicas.
    """

    node: str
    url: str
    labels: dict[str, str] = {}
    live: int = 0
    capacity: int | None = None
    room: int | None = None
    away: bool = False
    draining: bool = False
    accelerators: list[Accelerator] = []


class NodeList(Message, frozen=True, kw_only=True):
    """`GET /api/v1/nodes`."""

    total: int
    nodes: list[NodeInfo]


class TemplateGlance(Message, frozen=True, kw_only=True):
    """One template of a node, in its agent's heartbeat: what a planner needs of it.

    Args:
        accelerators: How many a replica needs, where the deployment does not say.
        memory_mb: Of each of them, where they are shared.
        shares: Replicas may share an accelerator, by memory.
        sleeps: Its replicas can be put to sleep.
        followers: Members of its groups beside the leader, where the deployment does not say; 0: its replicas are no groups.
        digest: Differs when the template does.
        parameters: JSON schema of its parameters; in a heartbeat empty where it would be too large.
        error: Why its file is of no use: nothing is made of it.
    """

    name: str
    accelerators: int = 0
    memory_mb: int = 0
    shares: bool = False
    sleeps: bool = False
    followers: int = 0
    digest: str = ""
    parameters: JsonObject = {}
    description: str = ""
    error: str | UnsetType = UNSET


RELEASE_SERVER = TemplateGlance(
    name="cbclient",
    description="The release server's modes. It has no parameters: the create request says all, as a deployment's `request`.",
)
"""Every node has it; it is no file, and a create call does not name it."""


class TemplateInfo(TemplateGlance, frozen=True, kw_only=True):
    """One template in `GET /api/v1/templates`; a registry lists each name and digest with the nodes that have it."""

    nodes: list[str] = []


class TemplateList(Message, frozen=True, kw_only=True):
    """`GET /api/v1/templates`, of an agent and of a registry."""

    total: int
    templates: list[TemplateInfo]


class DeploymentMember(Message, frozen=True, kw_only=True):
    """One member of a replica that is a group; rank 0 leads."""

    rank: int
    node: str
    status: str
    replica_id: str | None = None


class DeploymentReplica(Message, frozen=True, kw_only=True):
    """One replica of a deployment, as `GET /api/v1/deployments/{name}` shows it. A group has `members`; all else is its leader's."""

    request_id: str
    node: str
    revision: int
    status: str
    replica_id: str | None = None
    since: str | None = None
    leaving: bool = False
    members: list[DeploymentMember] = []


class DeploymentRevision(Message, frozen=True, kw_only=True):
    """One of the last ten revisions; `spec` is the whole specification as it stood."""

    revision: int
    at: str
    spec: JsonObject
    cause: str = ""


class Standing(Message, frozen=True, kw_only=True):
    """How a deployment stands. `wanted`: replicas that should run now; `stage` and what follows are of a start that is under way."""

    phase: DeploymentPhase
    reason: str | None = None
    wanted: int = 0
    ready: int = 0
    starting: int = 0
    asleep: int = 0
    leaving: int = 0
    in_flight: int = 0
    waiting: int = 0
    stage: str | UnsetType = UNSET
    percent: int | UnsetType = UNSET
    eta_s: float | UnsetType = UNSET
    position: int | UnsetType = UNSET
    last_request_at: str | None = None
    replicas: list[DeploymentReplica] = []


class DeploymentInfo(Standing, frozen=True, kw_only=True):
    """`GET /api/v1/deployments/{name}`, and one line of the list.

    Args:
        version: For `If-Match`; rises with every change of the specification, whether it rolls or not.
        revision: Rises when what runs changes.
        scaled: What `POST …/scale` asked for in place of the rule; absent otherwise.
        paused: Its rollout stands still.
    """

    name: str
    model: str
    version: int
    revision: int
    spec: JsonObject
    created_at: str
    updated_at: str
    paused: bool = False
    scaled: int | UnsetType = UNSET
    history: list[DeploymentRevision] = []


class DeploymentList(Message, frozen=True, kw_only=True):
    """`GET /api/v1/deployments`."""

    total: int
    deployments: list[DeploymentInfo]


class DeploymentChange(Message, frozen=True, kw_only=True):
    """Answer to `PUT /api/v1/deployments/{name}[?dry_run=true]`: what the call did, or would do.

    Args:
        change: `created`, `rolls` (a new revision), `updated` (nothing that runs changes) or `unchanged`.
        diff: Dotted members of the specification with their values before and after.
        warnings: What stands in its way now, such as that no node has that many accelerators.
    """

    name: str
    change: Literal["created", "rolls", "updated", "unchanged"]
    version: int
    revision: int
    diff: dict[str, list[JsonObject | str | int | float | bool | list[str] | None]] = {}
    warnings: list[str] = []


class ScaleCall(Message, frozen=True, kw_only=True):
    """Body of `POST …/scale`: so many, until the next `PUT`; null gives it back to the rule."""

    replicas: Annotated[int, Meta(ge=0, le=1000)] | None = None


class UndoCall(Message, frozen=True, kw_only=True):
    """Body of `POST …/undo`, which may be empty: the revision to return to; absent: the one before."""

    revision: int | None = None
