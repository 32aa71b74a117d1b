"""What does not change in a babysitter's life: the replica as the settings describe it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from babysitter.attempt import ServerCommand
from babysitter.lifecycle import RestartPolicy
from babysitter.lora import LoraRules
from babysitter.peers import Peers
from babysitter.sleep_rules import SleepRules
from babysitter.slots import Slots
from common.wire.base import JsonObject
from common.wire.replica import Stage


class ServerDeployer(Protocol):
    """Makes the environment that a server needs, and its command."""

    async def deploy(self, tell: Callable[[Stage], None]) -> ServerCommand:
        """Make everything, telling each stage.

        Raises:
            DeployError: A stage failed for good; the text names it.
        """
        ...

    def existing(self) -> ServerCommand | None:
        """The command when all is there already, else None. Quick."""
        ...


class DeployError(Exception):
    """The environment cannot be made; the text names the stage and the reason."""


@dataclass(frozen=True, slots=True)
class JobRules:
    """Where the server tells its cluster jobs, how orphans are cancelled, how their states are asked for.

    Without a command nothing is done. `namespace` fills `{namespace}` in the state command.
    """

    run_meta: Path | None = None
    cancel_command: tuple[str, ...] = ()
    cancel_timeout_s: float = 60.0
    state_command: tuple[str, ...] = ()
    state_interval_s: float = 30.0
    state_timeout_s: float = 10.0
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class LogRules:
    """The server's output files, and how much of them is kept."""

    stdout: Path
    stderr: Path
    max_bytes: int = 64 << 20
    keep: int = 3
    check_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Who is where.

    `bind` is where the server listens, `local` where this machine reaches it, `record` what the registry tells others,
    `endpoint` what clients are told; `own_port` and `own_scheme` are the babysitter's. The server may choose another port than `port`
    and tell it in `port_file`, or in its log.
    """

    bind: str
    local: str
    record: str
    endpoint: str
    port: int
    own_port: int
    port_file: Path | None = None
    port_in_log: bool = False
    own_scheme: str = "http"


@dataclass(frozen=True, slots=True)
class Requested:
    """What every report says of the create request that made the replica; nothing, where none did."""

    server_mode: str | None = None
    model_name: str | None = None
    multibox: str | None = None
    namespace: str | None = None
    request_id: str | None = None
    metadata: JsonObject = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spec:
    """The replica. Either `command` or `deployer` is given; `metadata` goes into its records.

    `server_settings` has a digest of each setting that a start of the server uses, by name. With a `stop_command` the
    server is no child of its command (a container, say): it is ended by that, and its health alone tells how it is. `peers` has
    a member of a group.
    """

    name: str
    label: str
    addresses: Addresses
    policy: RestartPolicy
    logs: LogRules
    jobs: JobRules
    workdir: Path
    heartbeat_s: float
    start_interval_s: float
    interval_s: float
    look_timeout_s: float
    grace_s: float
    slots: Slots
    command: ServerCommand | None = None
    deployer: ServerDeployer | None = None
    stop_command: tuple[str, ...] = ()
    server_settings: dict[str, str] = field(default_factory=dict)
    deploy_mark: str | None = None
    venv_path: str | None = None
    metadata: JsonObject = field(default_factory=dict)
    requested: Requested = Requested()
    lora: LoraRules = field(default_factory=LoraRules)
    sleep: SleepRules | None = None
    peers: Peers | None = None
    weight: float | None = None
    diagnostics: bool = False
    memory_soft_bytes: int | None = None
    memory_hard_bytes: int | None = None
