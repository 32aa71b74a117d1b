"""PURE: the states of a replica, what is remembered of its life, and the rules that an operator sets for it."""

from dataclasses import dataclass
from enum import StrEnum

from babysitter import events as ev
from common.wire.words import DisplayStatus, ReplicaStatus


class ReplicaState(StrEnum):
    """Where a replica is. The last four words are ours; the others are also the wire's (docs/contract.md 5)."""

    PENDING = "pending"
    CREATING = "creating"
    STARTING = "starting"
    WAITING_FOR_READY = "waiting_for_ready"
    READY = "ready"
    ASLEEP = "asleep"
    UNHEALTHY = "unhealthy"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    BACKING_OFF = "backing_off"
    DRAINING = "draining"
    ENDING = "ending"
    """The server is being ended by us, to be restarted or to fail with a verdict."""
    DOZING = "dozing"
    """It gets no new requests, finishes those that it has, and goes to sleep."""


WIRE = {
    ReplicaState.BACKING_OFF: ReplicaStatus.STARTING,
    ReplicaState.DOZING: ReplicaStatus.ASLEEP,
    ReplicaState.DRAINING: ReplicaStatus.STOPPING,
    ReplicaState.ENDING: ReplicaStatus.UNHEALTHY,
}
BEGINNING = frozenset({ReplicaState.CREATING, ReplicaState.STARTING, ReplicaState.WAITING_FOR_READY})
"""States of a start that is under way."""
PROBED = frozenset({ReplicaState.WAITING_FOR_READY, ReplicaState.READY, ReplicaState.UNHEALTHY})
"""States in which the server is asked how it is."""
SLEEPING = frozenset({ReplicaState.DOZING, ReplicaState.ASLEEP})
"""States in which nobody needs the server: whoever asks for its model has it woken."""
ALIVE = PROBED | SLEEPING | {ReplicaState.STARTING, ReplicaState.DRAINING, ReplicaState.STOPPING, ReplicaState.ENDING}
"""States in which a server's process may exist."""


def wire_status(state: ReplicaState) -> ReplicaStatus:
    """The contract's word for `state`."""
    return WIRE.get(state) or ReplicaStatus(state.value)


def display_status(state: ReplicaState) -> DisplayStatus:
    """The release server's word for `state`."""
    if state in BEGINNING | SLEEPING or state in (ReplicaState.PENDING, ReplicaState.BACKING_OFF):
        return DisplayStatus.PENDING
    if state in (ReplicaState.READY, ReplicaState.DRAINING):
        return DisplayStatus.ACTIVE
    return DisplayStatus.FAILED


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When to restart, give up, and distrust. Durations in seconds; a None deadline never comes."""

    restart_first_s: float = 5.0
    restart_last_s: float = 60.0
    steady_s: float = 600.0
    max_restarts: int = 10_000
    crash_loop_exits: int = 5
    crash_loop_window_s: float = 600.0
    no_restart_codes: frozenset[int] = frozenset({78, 125})
    unhealthy_after: int = 3
    healthy_after: int = 2
    liveness_s: float | None = 60.0
    startup_timeout_s: float | None = None
    port_timeout_s: float | None = None
    stall_s: float = 1800.0
    end_stalled: bool = False
    end_late: bool = False
    drain_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Move:
    """One transition: when (monotonic), from where to where, why, and how many seconds the old state lasted."""

    at: float
    before: ReplicaState
    after: ReplicaState
    cause: str
    lasted_s: float


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """Everything the machine knows. Times are monotonic seconds.

    `restarts` counts for ever, `spent` those that `max_restarts` bounds: since a retry or a steady time;
    `failures` counts exits in a row for the back-off; `exits` are the recent ones without ever having been ready;
    `late` tells that a start is past a time limit that was asked for, and goes on;
    `unstarted` tells that the last start came to nothing;
    `verdict` is the reason to fail once the server has ended; `wake_at` is when the machine wants `Woke`.
    """

    state: ReplicaState = ReplicaState.PENDING
    since: float = 0.0
    restarts: int = 0
    spent: int = 0
    failures: int = 0
    exits: tuple[float, ...] = ()
    ready_at: float | None = None
    good: int = 0
    bad: int = 0
    bad_since: float = 0.0
    waiting_since: float = 0.0
    progress_at: float = 0.0
    listens: bool = False
    stalled: bool = False
    late: bool = False
    unstarted: bool = False
    verdict: str | None = None
    error: str | None = None
    wake_at: float | None = None
    story: tuple[Move, ...] = ()


class InvalidTransition(RuntimeError):
    """An event came in a state that has no row for it: a defect of ours."""

    def __init__(self, life: Lifecycle, event: ev.Event) -> None:
        story = ", ".join(f"{move.before}→{move.after} ({move.cause})" for move in life.story) or "none"
        super().__init__(f"{type(event).__name__} in state {life.state}; the story: {story}")
