"""PURE. The planner's nouns. Moments are seconds of wall time, so that they mean the same to the next leader."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from common.wire.base import JsonObject
from common.wire.deployment import Standing, TemplateGlance
from common.wire.words import ReplicaStatus


class Cause(StrEnum):
    """Why a replica leaves, as metrics count it."""

    EVICTED = "evicted"
    IDLE = "idle"
    ROLLED = "rolled"
    SCALED = "scaled"
    SLEPT = "slept"
    ENDED = "ended"
    SILENT = "silent"
    DELETED = "deleted"
    SURPLUS = "surplus"
    MOVED = "moved"


@dataclass(frozen=True, slots=True)
class Needs:
    """What one replica needs of its node: accelerators of its own, or `memory_mb` of one that it may share.

    A group needs that of its leader's node, and of as many others as it has `followers`.
    """

    accelerators: int = 0
    memory_mb: int = 0
    shares: bool = False
    followers: int = 0


@dataclass(frozen=True, slots=True)
class Wish:
    """One deployment, as far as the planner needs it. `revision` is the one that is started, with its template and needs.

    `paused`: replicas of any other stay. `scaled` replaces the rule; `woken_at` is when somebody called `wake`, `slept_at`
    when `sleep`.
    """

    name: str
    revision: int
    template: str | None
    accelerators: int | None = None
    memory_mb: int | None = None
    followers: int | None = None
    least: int = 1
    most: int = 1
    in_flight_per_replica: int = 8
    up_after_s: float = 0.0
    down_after_s: float = 300.0
    idle_s: float = 0.0
    dwell_s: float = 60.0
    surge: int = 1
    """How many a rollout replaces at once."""
    nodes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    spread: bool = False
    priority: int = 0
    paused: bool = False
    scaled: int | None = None
    woken_at: float | None = None
    slept_at: float | None = None
    deleted: bool = False
    """Everything of it is to go."""
    start_s: float | None = None
    """How long a start of it usually takes; None: nobody knows yet. What is slow to start is the last to be evicted."""


@dataclass(frozen=True, slots=True)
class Follower:
    """One member of a group beside the leader."""

    request_id: str
    node: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """A replica that a node was told to run, or is about to be told: written before the call, removed after the end.

    `request_id` makes the call safe to repeat. `leaving`: it is being drained and removed. `needs` is what it was promised.
    Of a group it names the leader; `followers` are the other members, by rank.
    """

    request_id: str
    deployment: str
    revision: int
    node: str
    made_at: float
    leaving: bool = False
    needs: Needs = Needs()
    followers: tuple[Follower, ...] = ()

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """Request id and node of all that belongs to it, by rank."""
        return ((self.request_id, self.node), *((one.request_id, one.node) for one in self.followers))


@dataclass(frozen=True, slots=True)
class SeenReplica:
    """A replica of a deployment that heartbeats tell of.

    `node` is where it runs; `ending`: its job ends soon; `stale`: its lease ended; `in_flight`: by routers. `status_since` and
    `ready_at` are moments. `asleep`: it sleeps or is about to, and serves when it is woken; `sleepless`: it refuses to.
    """

    replica_id: str
    request_id: str
    deployment: str
    revision: int
    node: str
    status: ReplicaStatus
    service: str | None = None
    asleep: bool = False
    sleepless: bool = False
    draining: bool = False
    ending: bool = False
    stale: bool = False
    in_flight: int = 0
    status_since: float | None = None
    ready_at: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """One accelerator. `holders` are replica ids; `claimed`: a hand-made file has it."""

    index: int
    kind: str
    memory_mb: int = 0
    holders: tuple[str, ...] = ()
    claimed: bool = False
    shared_mb: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """One node's agent, by its heartbeat. `room`: more replicas that it takes; None: it does not say."""

    name: str
    slots: tuple[Slot, ...] = ()
    templates: Mapping[str, TemplateGlance] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    room: int | None = None
    away: bool = False
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Traffic:
    """All routers' word on one model, added up; `last_request_at` is a moment, None: never since anybody counted."""

    in_flight: int = 0
    waiting: int = 0
    last_request_at: float | None = None
    recent_per_s: float = 0.0
    """Requests per second, decayed over some minutes: how much it is used."""


@dataclass(frozen=True, slots=True)
class Setback:
    """Starts of a deployment on a node that failed in a row; none is tried there before `until`."""

    deployment: str
    node: str
    failures: int
    until: float
    reason: str


# What the planner answers.


@dataclass(frozen=True, slots=True)
class Start:
    """Make one replica there; of a group the leader, and a follower on each of `followers`."""

    deployment: str
    revision: int
    node: str
    needs: Needs
    reason: str
    followers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wake:
    """Wake a replica that sleeps."""

    replica_id: str
    deployment: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sleep:
    """Put a replica to sleep; it keeps its place and gives its accelerators' memory back."""

    replica_id: str
    deployment: str
    reason: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Drain a replica, then stop and remove it. `request_id` names it even before any heartbeat did."""

    request_id: str
    deployment: str
    cause: Cause
    reason: str
    replica_id: str | None = None
    node: str | None = None


@dataclass(frozen=True, slots=True)
class Abandon:
    """Forget an assignment: its node is away for longer than its lease, so that what ran there must be made elsewhere."""

    request_id: str
    deployment: str
    reason: str


Action = Start | Wake | Sleep | Leave | Abandon


def first(actions: Iterable[Action], most: int) -> Iterator[Action]:
    """No more than `most` of those that wait for their turn."""
    for action in actions:
        if isinstance(action, Start | Leave | Sleep):
            if most <= 0:
                continue
            most -= 1
        yield action


@dataclass(slots=True)
class Memory:
    """What the planner wants to be reminded of at the next call, by deployment; empty for a new leader."""

    above_since: dict[str, float] = field(default_factory=dict)
    """Since when more replicas would be wanted by load than there are; `below_since`: fewer."""
    below_since: dict[str, float] = field(default_factory=dict)
    below_peak: dict[str, int] = field(default_factory=dict)
    """The most that load wanted since then: what it goes down to."""
    wanted: dict[str, int] = field(default_factory=dict)
    queued_since: dict[str, float] = field(default_factory=dict)
    evicted_at: dict[str, float] = field(default_factory=dict)
    """A `wake` of before this moment is done with."""
    silent_since: dict[str, float] = field(default_factory=dict)
    """By request id: since when nothing is heard of a replica whose node is there."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The planner's answer."""

    actions: tuple[Action, ...] = ()
    standings: Mapping[str, Standing] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)


@dataclass(frozen=True, slots=True)
class StoredDeployment:
    """What a store keeps of a deployment, as one document.

    `spec` and each of `history` are specifications in their JSON form. `serial` numbers its request ids and never falls.
    """

    name: str
    uid: str
    version: int
    revision: int
    spec: JsonObject
    created_at: str
    updated_at: str
    history: tuple[JsonObject, ...] = ()
    assignments: tuple[Assignment, ...] = ()
    setbacks: tuple[Setback, ...] = ()
    serial: int = 0
    held: int | None = None
    """While its rollout is paused: the revision that goes on being started."""
    scaled: int | None = None
    woken_at: float | None = None
    slept_at: float | None = None
    deleted: bool = False
