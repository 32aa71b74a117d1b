"""PURE: what can happen to a replica (events) and what the machine wants done about it (effects).

Three dozen of them: as dataclasses they would take a twentieth of a babysitter's start.
"""

import signal

from msgspec import Struct

LOG_TAIL_LIMIT_BYTES = 4096


class Begin(Struct, frozen=True):
    """The replica is wanted: deploy its environment if `deploy`, then start its server."""

    deploy: bool = False


class Retry(Struct, frozen=True):
    """Someone wants a failed replica to begin again; in any other state it is late."""

    deploy: bool = False


class Deployed(Struct, frozen=True):
    """The environment stands."""


class DeployFailed(Struct, frozen=True):
    """The environment cannot be made; `reason` names the stage."""

    reason: str


class Undeployed(Struct, frozen=True):
    """A start found no environment: it was adopted away from its deployment, or somebody removed it."""


class Spawned(Struct, frozen=True):
    """The server's process runs."""

    pid: int


class NotSpawned(Struct, frozen=True):
    """The node, not the server, is why nothing was started: no room for the attempt's directory, no process.

    `chance` is a random number in [0, 1) for the back-off.
    """

    reason: str
    chance: float = 0.5


class Adopted(Struct, frozen=True):
    """A server of an earlier babysitter was found alive.

    `asleep`: it was to sleep, and is to go on so. `dazed`: its engine may sleep, and is to be awake.
    """

    pid: int
    asleep: bool = False
    dazed: bool = False


class ProbeGood(Struct, frozen=True):
    """The server answered as it should."""


class ProbeBad(Struct, frozen=True):
    """The server did not answer, or not as it should."""

    reason: str


class PortFound(Struct, frozen=True):
    """The server listens, whatever it answers."""


class StartProgress(Struct, frozen=True):
    """The server's log or run_meta.json moved: it is busy starting."""


class OverLimit(Struct, frozen=True):
    """The server takes more memory than it may."""

    reason: str


class Exited(Struct, frozen=True):
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


class StopRequested(Struct, frozen=True):
    """Someone wants the server ended for good; `force` skips the drain and the grace."""

    reason: str
    force: bool = False


class SleepRequested(Struct, frozen=True):
    """Nobody needs the server for now."""


class WakeRequested(Struct, frozen=True):
    """Somebody needs the server again."""


class Slept(Struct, frozen=True):
    """Its engine sleeps."""


class NotSlept(Struct, frozen=True):
    """Its engine did not do it."""

    reason: str


class NotWoken(Struct, frozen=True):
    """Its engine sleeps on, though it was told to wake for long enough."""

    reason: str


class Drained(Struct, frozen=True):
    """No request is left, or none can be counted and routers had time to hear."""


class MemberAway(Struct, frozen=True):
    """Another member of its group does not answer, or is not up: no requests until it is."""

    reason: str


class GroupBroken(Struct, frozen=True):
    """Another member of its group is gone for good."""

    reason: str


class Woke(Struct, frozen=True):
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


class Deploy(Struct, frozen=True):
    """Make the environment, then tell `Deployed` or `DeployFailed`."""


class AbortDeploy(Struct, frozen=True):
    """Stop making the environment, then tell `DeployFailed`."""


class Spawn(Struct, frozen=True):
    """Start a new attempt, then tell `Spawned` or `Exited`."""


class Terminate(Struct, frozen=True):
    """End the server: TERM, grace, KILL (`force`: KILL at once); `Exited` follows."""

    force: bool = False


class DrainRequests(Struct, frozen=True):
    """Take the server out of rotation, wait for its requests, then tell `Drained`."""


class SleepEngine(Struct, frozen=True):
    """Put the engine to sleep, then tell `Slept` or `NotSlept`."""


class WakeEngine(Struct, frozen=True):
    """Wake the engine, as often as it takes; nobody asks it for anything before. Tell `NotWoken` if it never does."""


class CancelJobs(Struct, frozen=True):
    """The server is gone: cancel the cluster jobs that it left behind."""


class Finish(Struct, frozen=True):
    """The replica is stopped for good."""


Effect = Deploy | AbortDeploy | Spawn | Terminate | DrainRequests | SleepEngine | WakeEngine | CancelJobs | Finish


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
