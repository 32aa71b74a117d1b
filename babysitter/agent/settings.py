"""The agent's settings: from a file, the environment (under the release server's names as well), and flags (docs/contract.md 5)."""

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from babysitter.agent.accelerators import VARIABLES
from babysitter.agent.slurm.job import OPTIONS, BadOption, checked
from babysitter.settings import BabysitterSettings
from babysitter.settings import parse as parse_babysitter
from common import own_python
from common.exits import ConfigurationError
from common.names import is_host, is_service_name
from common.service import LOG_LEVELS, ServiceSettings
from common.settings import CommaList, CommaPaths, Settings, SettingsError, find_config, load, option
from common.wire.create import Name, Text

ENV_PREFIX = "SVC_AGENT_"
PLAIN_ENV = (
    "HOST", "PORT", "SERVICE_HOST", "SERVICE_PORT", "LOG_LEVEL", "LOCAL_WORKDIR_ROOT", "CLEANUP_ON_SHUTDOWN",
    "DEFAULT_HEALTH_TIMEOUT_S", "DEFAULT_POLL_INTERVAL_S", "DEFAULT_READINESS_TIMEOUT_S",
    "DEFAULT_PORT_DISCOVERY_TIMEOUT_S", "CONFIG_FILE",
)  # fmt: skip
"""The release server's variables. They are ours alone: no babysitter, and so no server, inherits them."""
LEAST_PORT = 1024
NOBODY = "000000000000"
"""A replica that is not there, to judge settings by."""
LAST_PORT = 65_535
LABELS_MOST = 64


class AcceleratorSettings(Settings):
    """`[accelerators]`: the node's; unset, NVIDIA's are found by NVML."""

    kind: str | None = option(
        None,
        "What they are: cuda, rocm, hpcc, ascend, musa, mlu, or another word with its `variable`.",
        flags=(),
        pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$",
    )
    count: int | None = option(
        None, "How many there are; 0: none are given out. Unset: what NVML finds.", flags=(), ge=0, le=128
    )
    memory_mb: int | None = option(
        None, "Memory of each, in MiB; unset: what NVML tells, else not known, and none can be shared.", flags=(), ge=1
    )
    variable: str | None = option(
        None,
        "Variable that tells a server which are its own; unset: the kind's, such as CUDA_VISIBLE_DEVICES.",
        flags=(),
        pattern=r"^[A-Z][A-Z0-9_]{0,63}$",
    )
    hide: bool = option(True, "Give a replica that needs none the variable empty, so that it takes none.", flags=())
    claims: CommaList = option(
        (),
        "Settings files of babysitters that no agent makes, as globs: accelerators that their `env` names are left alone.",
        flags=(),
    )

    @model_validator(mode="after")
    def _can_be_assigned(self) -> "AcceleratorSettings":
        if self.count and self.kind is None:
            raise ValueError("count needs kind")
        if self.kind is not None and self.variable is None and self.kind not in VARIABLES:
            raise ValueError(f"kind {self.kind!r} needs variable; known are {', '.join(VARIABLES)}")
        return self

    @property
    def assigning(self) -> str:
        """The variable that assigns them."""
        return self.variable or VARIABLES[self.kind or "cuda"]


class SlurmSettings(Settings):
    """`[slurm]`: what every job is told that its template leaves out, and how jobs are followed."""

    partition: str | None = option(None, "Partition, or several with commas; unset: Slurm's default.", flags=())
    account: str | None = option(None, "Account that is charged.", flags=())
    qos: str | None = option(None, "Quality of service.", flags=())
    reservation: str | None = option(None, "Reservation.", flags=())
    constraint: str | None = option(None, "Features that a node must have.", flags=())
    gres: str | None = option(None, "Generic resources; unset: gpu:N, where a replica needs N accelerators.", flags=())
    cpus: int | None = option(None, "CPUs of a job.", flags=(), ge=1, le=9999)
    memory_mb: int | None = option(None, "Memory of a job, in MiB.", flags=(), ge=1)
    time_s: int | None = option(None, "Time limit of a job, in seconds; Slurm rounds up to minutes.", flags=(), ge=60)
    notice_s: int = option(
        600,
        "How long before its end a job is warned, so that a successor starts; half of its time at most, in seconds.",
        flags=(),
        ge=0,
        le=65_535,
    )
    poll_s: float = option(5.0, "Between two looks at the queue, in seconds.", flags=(), gt=0, le=600)

    @model_validator(mode="after")
    def _can_be_told(self) -> "SlurmSettings":
        try:
            checked(self.job)
        except BadOption as error:
            raise ValueError(str(error).removeprefix("slurm.")) from error
        return self

    @property
    def job(self) -> dict[str, str | int]:
        """The options that are set."""
        return {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}


class AgentSettings(ServiceSettings):
    """Make, show and stop the replicas of this node."""

    host: str = option("127.0.0.1", "Address to listen on.", env=["HOST", "SERVICE_HOST"], restart=True)
    port: int = option(
        18100,
        "Port to listen on; 0 lets the kernel choose.",
        env=["PORT", "SERVICE_PORT"],
        ge=0,
        le=LAST_PORT,
        restart=True,
    )
    log_level: str = option(
        "INFO", "Least level of the lines logged.", env=["LOG_LEVEL"], pattern=LOG_LEVELS, restart=True
    )
    local_workdir_root: Path = option(
        Path("data/replicas"), "Directory of all replicas, one agent's own.", env=["LOCAL_WORKDIR_ROOT"], restart=True
    )
    cleanup_on_shutdown: bool = option(False, "Stop every replica when the agent ends.", env=["CLEANUP_ON_SHUTDOWN"])
    node: str = option(
        socket.gethostname, "This node's name, as placement.node gives it; unset: the host's name.", restart=True
    )
    registry_url: CommaList = option((), "Registries that the agent and its replicas report to.", restart=True)
    router_url: str | None = option(None, "The router, shown by babysitters.")
    registry_token_file: Path | None = option(None, "Register token for the registry, in a 0600 file.", restart=True)
    api_token_file: Path | None = option(None, "Token that every call but health and metrics needs, in a 0600 file.")
    insecure_no_auth: bool = option(False, "Listen on other than loopback addresses without a token.")
    advertise_host: str | None = option(None, "Host that others reach this node at, when not `host`.", restart=True)
    replica_host: str | None = option(
        None, "Address that servers and babysitters listen on; unset: that of the agent.", restart=True
    )
    babysitter_config: Path | None = option(None, "TOML or YAML file of settings that every babysitter gets.")
    templates_dir: Path | None = option(
        None, "Folder of the templates that replicas are made of, one TOML file each; unset: those that come along."
    )
    babysitter_command: tuple[str, ...] = option(
        tuple(own_python.command("babysitter")), "Starts a babysitter; its flags are added.", flags=()
    )
    first_port: int = option(20_000, "First of the ports that replicas get.", ge=LEAST_PORT, le=LAST_PORT)
    last_port: int = option(31_999, "Last of them; a replica takes two.", ge=LEAST_PORT, le=LAST_PORT)
    max_replicas: int = option(1000, "Most replicas at once.", ge=1)
    starts_at_once: int = option(4, "Babysitters that are started at the same time.", ge=1, le=1000, restart=True)
    stopped_retention_s: float = option(300.0, "How long a deleted replica is still shown, in seconds.", ge=0)
    model_dirs: CommaPaths = option((), "Directories that an absolute runconfig.model_dir may lie in.", flags=())
    heartbeat_interval_s: float = option(
        5.0,
        "Between two heartbeats to the registry, in seconds.",
        flags=["--heartbeat-interval"],
        was=["heartbeat_interval"],
        gt=0,
        le=3600,
        restart=True,
    )
    drain_timeout_s: float = option(
        5.0,
        "Time that open calls may take after SIGTERM, in seconds.",
        flags=["--drain-timeout"],
        was=["drain_timeout"],
        gt=0,
        le=600,
        restart=True,
    )
    default_health_timeout_s: float = option(
        5.0, "Of one look at a server, for a health call, in seconds.", env=["DEFAULT_HEALTH_TIMEOUT_S"], gt=0, le=600
    )
    default_poll_interval_s: float | None = option(
        None, "Between two looks at a server that starts, in seconds.", env=["DEFAULT_POLL_INTERVAL_S"], gt=0
    )
    default_readiness_timeout_s: float | None = option(
        None,
        "A start that takes longer is late, in seconds; unset: none is.",
        env=["DEFAULT_READINESS_TIMEOUT_S"],
        gt=0,
    )
    default_port_discovery_timeout_s: float | None = option(
        None,
        "A start whose server listens nowhere for so many seconds is late; unset: none is.",
        env=["DEFAULT_PORT_DISCOVERY_TIMEOUT_S"],
        gt=0,
    )

    labels: dict[Name, Text] = option(
        dict, "What this node is, such as zone or chip: a deployment may ask for nodes by it.", flags=()
    )
    accelerators: AcceleratorSettings = option(AcceleratorSettings, "The node's accelerators.", restart=True)
    runner: Literal["local", "slurm"] = option(
        "local",
        "What runs replicas: processes of this machine, or jobs of Slurm; then `accelerators` says how many they may have.",
        flags=(),
        restart=True,
    )
    slurm: SlurmSettings = option(SlurmSettings, "Jobs of Slurm.", restart=True)

    @field_validator("labels")
    @classmethod
    def _labels_are_few(cls, value: dict[str, str]) -> dict[str, str]:
        if len(value) > LABELS_MOST:
            raise ValueError(f"at most {LABELS_MOST} labels")
        return value

    @field_validator("node")
    @classmethod
    def _node_is_a_name(cls, value: str) -> str:
        if not is_service_name(f"agent-{value}") or not is_service_name(value):
            raise ValueError("must be at most 122 of A-Z a-z 0-9 . _ - and begin with a letter or a digit")
        return value

    @field_validator("host", "advertise_host", "replica_host")
    @classmethod
    def _host_is_host(cls, value: str | None) -> str | None:
        if value is not None and not is_host(value):
            raise ValueError("must be a host name or an address")
        return value

    @model_validator(mode="after")
    def _ports_are_a_range(self) -> "AgentSettings":
        if self.last_port <= self.first_port:
            raise ValueError("last_port must be greater than first_port")
        return self

    @property
    def servers_host(self) -> str:
        """Where servers and babysitters listen."""
        return self.replica_host or self.host


def parse(argv: Sequence[str], env: Mapping[str, str]) -> AgentSettings:
    """Settings from `--config` (or CONFIG_FILE), environment and flags; later ones win.

    Raises:
        SettingsError: They cannot be used.
        SystemExit: argparse's.
    """
    return load(AgentSettings, prog="svc-agent", env_prefix=ENV_PREFIX, argv=argv, env=_with_config(env))


def config_file(argv: Sequence[str], env: Mapping[str, str]) -> Path | None:
    """The file that `parse` would read, so that it can be watched."""
    return find_config(env_prefix=ENV_PREFIX, argv=argv, env=_with_config(env))


def _with_config(env: Mapping[str, str]) -> dict[str, str]:
    """CONFIG_FILE is the release server's name of our variable."""
    return {**env, f"{ENV_PREFIX}CONFIG": env.get(f"{ENV_PREFIX}CONFIG") or env.get("CONFIG_FILE", "")}


def babysitter_settings(settings: AgentSettings, env: Mapping[str, str]) -> BabysitterSettings:
    """The settings that a babysitter will read from the operator's file: a fault is reported now, not at every replica.

    Raises:
        ConfigurationError: A babysitter would refuse to start.
    """
    argv = ["--replica-dir", str(settings.local_workdir_root / NOBODY), "--port", str(settings.first_port)]
    if settings.babysitter_config is not None:
        argv += ["--config", str(settings.babysitter_config)]
    try:
        parsed = parse_babysitter(argv, env)
    except SettingsError as error:
        raise ConfigurationError(str(error)) from error
    if (parsed.name, parsed.port, parsed.backend.type) != (NOBODY, settings.first_port, "cbclient"):
        raise ConfigurationError(
            f"{settings.babysitter_config or 'environment'}: 'name', 'port' and 'backend' are each replica's own"
        )
    return parsed
