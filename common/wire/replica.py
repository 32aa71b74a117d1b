"""PURE. A replica: its babysitter's report, and the info that the release server's clients read (docs/contract.md 4, 5).

Times are ISO 8601 in UTC, durations seconds.
"""

from typing import Any, Final, Literal

from msgspec import UNSET, UnsetType, field

from common.wire.base import JsonObject, Message
from common.wire.deployment import Accelerator, AcceleratorReading, TemplateGlance
from common.wire.group import GroupMember
from common.wire.lora import LoraAdapter
from common.wire.words import NOT_SERVING, DisplayStatus, ReplicaStatus, StageState


class Stage(Message, frozen=True, kw_only=True):
    """One stage of a deployment. `took_s` grows while it runs; `detail` is what goes on, or why it failed.

    `ends_at` has only a stage whose end somebody else decides, such as a place in a scheduler's queue: when they expect it to
    be over, and null while they expect nothing.
    """

    name: str
    state: StageState
    began_at: str
    took_s: float = 0.0
    attempt: int = 1
    detail: str = ""
    ends_at: str | UnsetType | None = UNSET


class Transition(Message, frozen=True, kw_only=True, rename={"before": "from", "after": "to"}):
    """One move of a replica from one status to the next; `lasted_s` is how long the one before lasted."""

    at: str
    before: str
    after: str
    cause: str
    lasted_s: float = 0.0


class ReplicaMembers(Message, frozen=True, kw_only=True):
    """What a report and an info have in common.

    Args:
        server_mode: `ServerMode`; None where no create request made it.
        endpoint: Where clients reach it, else `NA`.
        base_url: Where this node reaches it.
        port: The server's.
        compile_wsjob: Ids of the cluster's compile jobs, in the order first seen; never lost.
        execute_wsjob: The same of its execute jobs.
        wsjob_states: What the cluster says of each job, by id.
        error_message: What is wrong, in plain words.
        registration_error: Why a registry refuses its record.
        stalled: Nothing moved for longer than it should take.
        late: It takes longer than its client said it would wait.
        need_restart: Settings whose new value is not yet in force.
        config_refused: What is wrong with the settings file as it is now.
        warnings: What the operator should know of a request that is carried out all the same.
        running: Requests in the engine. This and what follows is absent where the engine does not tell.
        waiting: Requests in the engine's own queue.
        kv_cache_usage: How full its KV cache is, from 0 to 1.
        prefix_query_tokens: Prompt tokens that it looked for in its prefix cache since it began.
        prefix_hit_tokens: Those of them that it found there.
    """

    replica_id: str
    status: ReplicaStatus = ReplicaStatus.UNKNOWN
    display_status: DisplayStatus = DisplayStatus.PENDING
    endpoint: str = NOT_SERVING
    server_mode: str | None = None
    model_name: str | None = None
    base_url: str | None = None
    host: str | None = None
    port: int | None = None
    multibox: str | None = None
    namespace: str | None = None
    workdir: str | None = None
    venv_path: str | None = None
    replica_pid: int | None = None
    restart_count: int = 0
    models: list[str] = []
    compile_wsjob: list[str] = []
    execute_wsjob: list[str] = []
    wsjob_states: dict[str, str] = {}
    stages: list[Stage] = []
    created_at: str | None = None
    updated_at: str | None = None
    status_since: str | None = None
    ready_at: str | None = None
    next_restart_at: str | None = None
    error_message: str | None = None
    registration_error: str | None = None
    stalled: bool = False
    late: bool = False
    need_restart: list[str] = []
    config_refused: str | None = None
    warnings: list[str] = []
    request_id: str | None = None
    diagnostics: Any = None
    metadata: JsonObject = {}
    running: int | UnsetType = UNSET
    waiting: int | UnsetType = UNSET
    kv_cache_usage: float | UnsetType = UNSET
    prefix_query_tokens: int | UnsetType = UNSET
    prefix_hit_tokens: int | UnsetType = UNSET


class ReplicaInfo(ReplicaMembers, frozen=True, kw_only=True):
    """A replica as `/api/v1/replicas` shows it; `metadata` is the request's, and what `InfoMarks` says."""


class ReplicaReport(ReplicaMembers, frozen=True, kw_only=True):
    """A replica as its babysitter reports it.

    Args:
        instance_id: Names the replica for ever.
        incarnation: Rises with each start of its babysitter.
        state_persist_failed: Why the disk refused its state, or None.
        rss_mb: Memory of the server's processes in MiB, in coarse steps; pages that they share are counted once.
        degraded: The server takes more memory than its soft limit.
        models_list: Model objects that were too many for the record.
        left_out: Members that were cut, since a registry bounds a report.
    """

    instance_id: str = ""
    incarnation: int = 0
    state_persist_failed: str | None = None
    rss_mb: int = 0
    degraded: bool = False
    models_list: list[JsonObject] | UnsetType = UNSET
    left_out: list[str] | UnsetType = UNSET
    adapters: list[LoraAdapter] | UnsetType = UNSET


PASSING: Final = frozenset(
    {"running", "waiting", "kv_cache_usage", "prefix_query_tokens", "prefix_hit_tokens", "updated_at", "readings"}
)
"""Members of a report that change with every heartbeat: shown and streamed, never written to a store. All others last."""


class ReplicaHeartbeat(ReplicaReport, frozen=True, kw_only=True):
    """A report as a heartbeat's body. Here `status` is the record's, and the replica's own is `replica_status`.

    An ancestor's registry takes `status` for the record's and calls any word but `running` unhealthy.
    """

    status: str  # type: ignore[assignment] # the record's, which knows other words
    replica_status: ReplicaStatus | UnsetType = UNSET


class InfoMarks(Message, frozen=True, kw_only=True):
    """What registry, agent and babysitter add to an info's `metadata`. `ending`: it was told that its job will end.

    A member of a group has `group`, the request id of its leader, and `rank`; 0 leads.
    """

    node: str | UnsetType = UNSET
    service: str | UnsetType = UNSET
    hostname: str | UnsetType = UNSET
    stale: bool | UnsetType = UNSET
    draining: bool | UnsetType = UNSET
    deleted: bool | UnsetType = UNSET
    ending: bool | UnsetType = UNSET
    group: str | UnsetType = UNSET
    rank: int | UnsetType = UNSET


class ReplicaList(Message, frozen=True, kw_only=True):
    """`GET /api/v1/replicas`."""

    total: int
    replicas: list[ReplicaInfo]


class OneReplica(Message, frozen=True, kw_only=True):
    """`GET /api/v1/replicas/{id}`."""

    replica_id: str
    status: ReplicaStatus
    info: ReplicaInfo


class Warned(Message, frozen=True, kw_only=True):
    """A member of a request that is accepted and not carried out as it stands; `note` says what happens instead."""

    field: str
    note: str


class Created(Message, frozen=True, kw_only=True):
    """`POST /api/v1/replicas`: 201, or 200 for the same `request_id` again. `base_url` is null until it serves.

    `member` has one of a group: where it was reserved.
    """

    replica_id: str
    status: ReplicaStatus
    message: str
    request_id: str | None = None
    base_url: str | None = None
    warnings: list[Warned] | UnsetType = UNSET
    member: GroupMember | UnsetType = UNSET


class StopRequest(Message, frozen=True, kw_only=True):
    """Body of `POST /api/v1/replicas/{id}/stop`, which may be empty. `force`: kill at once instead of waiting."""

    force: bool = False


class ReplicaMessage(Message, frozen=True, kw_only=True):
    """The answer to a stop, a delete or a retry."""

    replica_id: str
    status: ReplicaStatus
    message: str


class ReplicaHealth(Message, frozen=True, kw_only=True):
    """`POST /api/v1/replicas/{id}/health`: the server was asked now."""

    replica_id: str
    healthy: bool
    message: str
    base_url: str | None = None


class CancelledJob(Message, frozen=True, kw_only=True):
    """What came of cancelling a job: the command's exit code (null while it runs, and when it could not), and its output."""

    at: str = ""
    code: int | None = None
    output: str = ""


class JobLedger(Message, frozen=True, kw_only=True):
    """Every cluster job of every attempt, and what came of cancelling it.

    Args:
        attempts: An attempt's uuid to the ids of its jobs, `{"compile": […], "execute": […]}`, in the order first seen.
        cancelled: By a job's id.
    """

    attempts: dict[str, dict[str, list[str]]] = {}
    cancelled: dict[str, CancelledJob] = {}


class Timeline(Message, frozen=True, kw_only=True):
    """`GET /api/v1/replicas/{id}/timeline`: what a replica went through."""

    replica_id: str
    status: ReplicaStatus
    transitions: list[Transition] = []
    stages: list[Stage] = []
    jobs: JobLedger = field(default_factory=JobLedger)


class NodeCounts(Message, frozen=True, kw_only=True):
    """How full a node is. `replicas_live` hold a place, of which there are `capacity`."""

    replicas_total: int = 0
    replicas_ready: int = 0
    replicas_live: int = 0
    capacity: int = 0


class AgentReport(NodeCounts, frozen=True, kw_only=True):
    """A node agent's heartbeat: how full the node is, and the replicas that have no babysitter to speak for them.

    `readings` are apart from `accelerators` because they change with every heartbeat.
    """

    instance_id: str
    incarnation: int
    node: str
    replicas: list[ReplicaInfo] = []
    labels: dict[str, str] = {}
    accelerators: list[Accelerator] = []
    readings: list[AcceleratorReading] = []
    templates: list[TemplateGlance] = []


class AgentHealth(NodeCounts, frozen=True, kw_only=True):
    """A node agent's `GET /health`; `timestamp` is now."""

    status: Literal["healthy"] = "healthy"
    version: str
    node: str
    timestamp: str
