"""PURE: what can happen to a replica (events) and what the machine wants done about it (effects)."""

import signal
from dataclasses import dataclass

LOG_TAIL_LIMIT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Begin:
    """The replica is wanted: deploy its environment if `deploy`, then start its server."""

    deploy: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """Someone wants a failed replica to begin again; in any other state it is late."""

    deploy: bool = False


@dataclass(frozen=True, slots=True)
class Deployed:
    """The environment stands."""


@dataclass(frozen=True, slots=True)
class DeployFailed:
    """The environment cannot be made; `reason` names the stage."""

    reason: str


@dataclass(frozen=True, slots=True)
class Undeployed:
    """A start found no environment: it was adopted away from its deployment, or somebody removed it."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """The server's process runs."""

    pid: int


@dataclass(frozen=True, slots=True)
class NotSpawned:
    """The node, not the server, is why nothing was started: no room for the attempt's directory, no process.

    `chance` is a random number in [0, 1) for the back-off.
    """

    reason: str
    chance: float = 0.5


@dataclass(frozen=True, slots=True)
class Adopted:
    """A server of an earlier babysitter was found alive.

    `asleep`: it was to sleep, and is to go on so. `dazed`: its engine may sleep, and is to be awake.
    """

    pid: int
    asleep: bool = False
    dazed: bool = False


@dataclass(frozen=True, slots=True)
class ProbeGood:
    """The server answered as it should."""


@dataclass(frozen=True, slots=True)
class ProbeBad:
    """The server did not answer, or not as it should."""

    reason: str


@dataclass(frozen=True, slots=True)
class PortFound:
    """The server listens, whatever it answers."""


@dataclass(frozen=True, slots=True)
class StartProgress:
    """The server's log or run_meta.json moved: it is busy starting."""


@dataclass(frozen=True, slots=True)
class OverLimit:
    """The server takes more memory than it may."""

    reason: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The server's process is gone, or never came to be.

    `code` is its exit code, `signal` what killed it; both are None when nobody was there to see, or when `error` tells
    why it could not be started. `left` counts the processes that it left behind. `tail` is the end of its log.
    `chance` is a random number in [0, 1) for the back-off.
    """

    code: int | None = None
    signal: int | None = None
    error: str | None = None
    left: int = 0
    tail: str = ""
    chance: float = 0.5

    def describe(self) -> str:
        """A few words for the operator."""
        if self.error is not None:
            return self.error
        if self.signal is not None:
            return f"killed by signal {self.signal} ({_signal_name(self.signal)})"
        if self.code == 0 and self.left:
            return (
                f"exited with code 0 and left {self.left} of its processes behind: keep the command in the foreground"
            )
        if self.code is not None:
            return f"exited with code {self.code}"
        return "gone; its exit code is unknown"


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Someone wants the server ended for good; `force` skips the drain and the grace."""

    reason: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class SleepRequested:
    """Nobody needs the server for now."""


@dataclass(frozen=True, slots=True)
class WakeRequested:
    """Somebody needs the server again."""


@dataclass(frozen=True, slots=True)
class Slept:
    """Its engine sleeps."""


@dataclass(frozen=True, slots=True)
class NotSlept:
    """Its engine did not do it."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotWoken:
    """Its engine sleeps on, though it was told to wake for long enough."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drained:
    """No request is left, or none can be counted and routers had time to hear."""


@dataclass(frozen=True, slots=True)
class MemberAway:
    """Another member of its group does not answer, or is not up: no requests until it is."""

    reason: str


@dataclass(frozen=True, slots=True)
class GroupBroken:
    """Another member of its group is gone for good."""

    reason: str


@dataclass(frozen=True, slots=True)
class Woke:
    """The machine's timer went off."""


Event = (
    Begin
    | Retry
    | Deployed
    | DeployFailed
    | Undeployed
    | Spawned
    | NotSpawned
    | Adopted
    | ProbeGood
    | ProbeBad
    | PortFound
    | StartProgress
    | OverLimit
    | Exited
    | StopRequested
    | SleepRequested
    | WakeRequested
    | Slept
    | NotSlept
    | NotWoken
    | Drained
    | MemberAway
    | GroupBroken
    | Woke
)


@dataclass(frozen=True, slots=True)
class Deploy:
    """Make the environment, then tell `Deployed` or `DeployFailed`."""


@dataclass(frozen=True, slots=True)
class AbortDeploy:
    """Stop making the environment, then tell `DeployFailed`."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a new attempt, then tell `Spawned` or `Exited`."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """End the server: TERM, grace, KILL (`force`: KILL at once); `Exited` follows."""

    force: bool = False


@dataclass(frozen=True, slots=True)
class DrainRequests:
    """Take the server out of rotation, wait for its requests, then tell `Drained`."""


@dataclass(frozen=True, slots=True)
class SleepEngine:
    """Put the engine to sleep, then tell `Slept` or `NotSlept`."""


@dataclass(frozen=True, slots=True)
class WakeEngine:
    """Wake the engine, as often as it takes; nobody asks it for anything before. Tell `NotWoken` if it never does."""


@dataclass(frozen=True, slots=True)
class CancelJobs:
    """The server is gone: cancel the cluster jobs that it left behind."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The replica is stopped for good."""


Effect = Deploy | AbortDeploy | Spawn | Terminate | DrainRequests | SleepEngine | WakeEngine | CancelJobs | Finish


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
