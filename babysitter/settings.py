"""What a babysitter can be told: a TOML file, the environment, and the flags of both ancestors (docs/contract.md 3)."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from babysitter.backend_settings import Backend, CbclientSettings, default_name, lower_type
from babysitter.legacy_flags import Table, add_backend_flags, backend_layer
from babysitter.sleep_rules import rules_of
from common.http.access import is_loopback
from common.names import is_host, is_service_name
from common.settings import (
    CommaList,
    Layer,
    Settings,
    add_flags,
    build,
    env_layer,
    file_layer,
    flag_layer,
    option,
)
from common.tracing import TracedSettings
from common.wire.address import bare
from common.wire.base import JsonObject

ENV_PREFIX = "SVC_BABYSITTER_"
Calls = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
"""A call, or a list of them."""
_ADAPTER_NAME = re.compile(r"[^\s,\"'\\]{1,128}")
_ADAPTER_NAMES_LIMIT = 4096
"""They stand in the record, which a registry bounds."""
RENDERED = "backend.json"
"""In a replica's directory: the settings that an agent made of a template, with the server's `[backend]`."""
LAST_PORT = 65_534
"""The babysitter itself listens on the next one."""


class RestartSettings(Settings):
    """`[babysitter]`: how patiently the server is looked after."""

    max_restarts: int = option(10_000, "Restarts before giving up.", flags=["--max-restarts"], ge=0)
    restart_delay_s: float = option(
        5.0,
        "Wait before the first restart, in seconds; doubled to 60 s.",
        flags=["--restart-delay"],
        was=["restart_delay"],
        ge=0,
    )
    heartbeat_interval_s: float = option(
        5.0,
        "Time between heartbeats, in seconds.",
        flags=["--heartbeat-interval"],
        was=["heartbeat_interval"],
        gt=0,
        le=3600,
    )
    restart_delay_max_s: float = option(60.0, "Longest wait before a restart, in seconds.", flags=(), gt=0)
    restart_reset_s: float | None = option(
        None, "Ignored, leave it out: after ten good minutes earlier failures are forgotten.", flags=(), retired=True
    )
    crash_loop_exits: int | None = option(
        None,
        "Ignored, leave it out: five exits without ever being ready are a crash loop, or one more than a `max_restarts` "
        "that is set.",
        flags=(),
        retired=True,
    )
    crash_loop_window_s: float | None = option(
        None, "Ignored, leave it out: the exits of a crash loop are those of ten minutes.", flags=(), retired=True
    )
    no_restart_codes: tuple[int, ...] = option((78, 125), "Exit codes that mean: do not restart.", flags=())
    stop_grace_s: float = option(30.0, "Time between SIGTERM and SIGKILL, in seconds.", flags=["--stop-grace"], ge=0)
    drain_timeout_s: float = option(
        30.0, "Longest wait for open requests before a stop, in seconds.", flags=["--drain"], was=["drain_s"], ge=0
    )
    start_slots: int = option(4, "Servers of this node that are spawned at the same time.", flags=(), ge=1, le=1000)
    start_slots_dir: Path | None = option(
        None,
        "Ignored, leave it out: starts are counted in a directory of this user under that for temporary files (TMPDIR).",
        flags=(),
        retired=True,
    )


class ProbeSettings(Settings):
    """`[probes]`: how the server is asked how it is."""

    start_interval_s: float = option(1.0, "Most seconds between two looks at a server that starts.", flags=(), gt=0)
    interval_s: float = option(5.0, "Between two looks at a server that serves, in seconds.", flags=(), gt=0)
    timeout_s: float = option(2.0, "Of one look, in seconds.", flags=(), gt=0)
    unhealthy_after: int = option(3, "Bad looks in a row before the server is out of rotation.", flags=(), ge=1)
    healthy_after: int = option(2, "Good looks in a row before it is back.", flags=(), ge=1)
    liveness_s: float | None = option(60.0, "Restart a once ready server after so many bad seconds.", flags=(), gt=0)
    readiness_timeout_s: float | None = option(None, "A start that takes longer is late, in seconds.", flags=(), gt=0)
    port_timeout_s: float | None = option(
        None, "A start whose server listens nowhere for so many seconds is late.", flags=(), gt=0
    )
    end_late: bool = option(False, "End and fail a late start instead of only telling.", flags=())
    stall_s: float = option(1800.0, "A start whose log is silent for so many seconds is stalled.", flags=(), gt=0)
    end_stalled: bool = option(False, "End a stalled start instead of only telling.", flags=())
    ready_when: Literal["answers", "listens", "runs"] = option(
        "answers",
        "Ready is what lists its models; or what listens, or runs, which no router asks for anything.",
        flags=(),
    )
    health_path: str = option(
        "/health",
        "Asked before the list of models, where the server has it (404: it has not). Empty: not asked.",
        flags=(),
    )
    generate_path: str = option(
        "auto",
        "Where one token is asked for before the server counts as ready, and then while it is idle. auto: at the first of "
        "completions, chat/completions, embeddings and rerank that it answers (a cbclient: nowhere). Empty: nowhere.",
        flags=(),
    )
    generate_timeout_s: float = option(120.0, "Of the first token, in seconds.", flags=(), gt=0)
    generate_interval_s: float = option(
        60.0, "Time without a sign of work after which a server that is ready is asked again; 0: never.", flags=(), ge=0
    )
    slow_start_s: float | None = option(None, "Time in which routers raise a fresh server's share.", flags=(), gt=0)


class LimitSettings(Settings):
    """`[limits]`: what the server and its children may take."""

    memory_soft_mb: int | None = option(None, "Above this the report says degraded, in MiB.", flags=(), gt=0)
    memory_hard_mb: int | None = option(None, "Above this it is drained and restarted, in MiB.", flags=(), gt=0)


class LogSettings(Settings):
    """`[logs]`: how much of the server's output is kept."""

    max_bytes: int = option(64 << 20, "Size at which a file is rotated, in bytes.", flags=(), ge=1024)
    keep: int = option(3, "Rotated files kept.", flags=(), ge=0, le=100)
    check_s: float = option(5.0, "Between two looks at their sizes, in seconds.", flags=(), gt=0)


class JobSettings(Settings):
    """`[jobs]`: the cluster jobs that a server starts."""

    run_meta: Path | None = option(None, "The run_meta.json that the server writes.", flags=())
    cancel_command: tuple[str, ...] = option(
        (), "Cancels an orphaned job; {wsjob_id} stands for its id. Empty: jobs are left alone.", flags=()
    )
    cancel_timeout_s: float = option(60.0, "Longest time for one cancel command, in seconds.", flags=(), gt=0)
    state_command: tuple[str, ...] = option(
        (),
        "Lists pods as `kubectl get pods -n {namespace} --no-headers` does. Empty: states are not asked for.",
        flags=(),
    )
    state_interval_s: float = option(30.0, "Between two state commands, in seconds.", flags=(), gt=0)
    state_timeout_s: float = option(10.0, "Longest time for one state command, in seconds.", flags=(), gt=0)


class LoraSettings(Settings):
    """`[lora]`: LoRA adapters of a vLLM server. Only this file names their paths; calls and requests name an adapter."""

    adapters: dict[str, str] = option(
        dict, "By the name that clients ask for as a model: the adapter's folder, as the server finds it.", flags=()
    )
    on_demand: bool = option(
        False, "Load an adapter at the first request for it; else all of them before the server is ready.", flags=()
    )
    max_loaded: int = option(
        8,
        "Adapters loaded at once; with on_demand the one that was idle for longest makes room.",
        flags=(),
        ge=1,
        le=1000,
    )

    @model_validator(mode="after")
    def _fits(self) -> "LoraSettings":
        wrong = [name for name in self.adapters if not _ADAPTER_NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"adapters: {wrong[0]!r}: a name is 1 to 128 characters without spaces, commas and quotes")
        if sum(map(len, self.adapters)) > _ADAPTER_NAMES_LIMIT:
            raise ValueError(f"adapters: all names together may have {_ADAPTER_NAMES_LIMIT} characters")
        if not self.on_demand and len(self.adapters) > self.max_loaded:
            raise ValueError(
                f"adapters: {len(self.adapters)} are more than max_loaded: raise it, or set on_demand = true"
            )
        return self


class SleepSettings(Settings):
    """`[sleep]`: how a server that nobody needs gives its accelerators' memory back, and takes it again.

    A call is written METHOD /path, and JSON after that where it has a body; a list of calls is made in its order.
    """

    level: Literal[1, 2] | None = option(
        None,
        "vLLM's own calls, where it serves on a loopback address. Asleep, 1 keeps the weights in the machine's memory, 2 "
        "reads them again.",
        flags=(),
    )
    sleep: Calls = option((), "The call that puts the server to sleep.", flags=())
    wake: Calls = option((), "The call that wakes it.", flags=())
    state: str = option("", "The call whose answer has `is_sleeping`, true or false. Empty: there is none.", flags=())

    @model_validator(mode="after")
    def _fits(self) -> "SleepSettings":
        if bool(self.sleep) is not bool(self.wake) or (self.state and not self.sleep):
            raise ValueError("sleep and wake need each other, and state needs them")
        if self.sleep and self.level is not None:
            raise ValueError("level: means vLLM's own calls: leave sleep, wake and state out")
        rules_of(self.sleep, self.wake, self.state)
        return self


class BabysitterSettings(TracedSettings):
    """Start one inference server, watch it, restart it, report it to the registry, stop it.

    The server listens on `port`, the babysitter on `port + 1`.
    """

    name: str = option("", "Name in the registry; unset: infinilm-TYPE-PORT.", flags=["-n", "--name"], restart=True)
    host: str = option("localhost", "Address of the server and of the babysitter.", flags=["--host"], restart=True)
    port: int = option(..., "The server's port.", flags=["-p", "--port"], ge=1, le=LAST_PORT, restart=True)
    registry_url: CommaList = option(
        (), "Registries to report to.", flags=["--registry-url", "--registry"], restart=True
    )
    router_url: str | None = option(
        None, "The router, shown in /info.", flags=["--router-url", "--router"], restart=True
    )
    advertise_host: str | None = option(None, "Host that others reach the server at, when not `host`.", restart=True)
    data_dir: Path = option(Path("data"), "Where the babysitter remembers.", restart=True)
    replica_dir: Path | None = option(
        None, "Directory ROOT/ID of an agent's replica, with its request.json (and backend.json).", restart=True
    )
    log_dir: Path = option(Path("logs"), "Where the server's output goes.", restart=True)
    on_exit: Literal["stop", "detach"] = option(
        "stop", "What SIGTERM does to the server: stop it, or leave it running."
    )
    end_notice_s: int = option(
        0,
        "How long before the end of what runs it, such as a job of Slurm, the babysitter is told by SIGUSR1, in seconds. The "
        "replica then calls for a successor, and stops in time. 0: never.",
        ge=0,
        restart=True,
    )
    server: Literal["child", "external"] = option(
        "child",
        "Whether the server is a process of its command's, or of another program's, as in a container: then its health "
        "alone tells how it is, and `stop_command` ends it.",
        flags=(),
    )
    stop_command: tuple[str, ...] = option((), "Ends an external server, like docker stop NAME.", flags=())
    token_file: Path | None = option(None, "Bearer token for the registry, in a 0600 file.", restart=True)
    api_token_file: Path | None = option(
        None, "Bearer token, in a 0600 file, for what others than this machine may only do with one.", restart=True
    )
    api_key_file: Path | None = option(
        None,
        "The server's own API key, in a 0600 file: shown by our probes, given to vLLM, told to nobody.",
        restart=True,
    )
    api_key_label: str | None = option(
        None, "Label in the record, under which routers know that key (`replica_keys`); unset: the name.", restart=True
    )
    models: CommaList = option((), "Ids of a server whose models call tells none.", flags=())
    expected_models: CommaList = option((), "Ids that must be served before the server is ready.", flags=())
    metadata: JsonObject = option(dict, "Merged into the service record.", flags=())
    weight: float | None = option(None, "Relative share of the requests.", flags=(), gt=0)
    babysitter: RestartSettings = Field(default_factory=RestartSettings)
    probes: ProbeSettings = Field(default_factory=ProbeSettings)
    logs: LogSettings = Field(default_factory=LogSettings)
    jobs: JobSettings = option(JobSettings, "The cluster jobs that a server starts.", restart=True)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    lora: LoraSettings = Field(default_factory=LoraSettings)
    sleep: SleepSettings = Field(default_factory=SleepSettings)
    cbclient: CbclientSettings = option(CbclientSettings, "How clients are deployed.", restart=True)
    backend: Annotated[Backend, Field(discriminator="type"), BeforeValidator(lower_type)] = option(
        ..., "The server.", flags=()
    )

    @model_validator(mode="before")
    @classmethod
    def _has_a_name(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("name"):
            return data
        backend = data.get("backend")
        kind = backend.get("type") if isinstance(backend, Mapping) else getattr(backend, "type", None)
        return {**data, "name": default_name(kind, data.get("port"))}

    @model_validator(mode="after")
    def _adapters_can_be_had(self) -> "BabysitterSettings":
        if not self.lora.adapters:
            return self
        if self.backend.type not in ("vllm", "command"):
            raise ValueError(
                f'lora: needs a server with vLLM\'s calls (backend.type "vllm" or "command"), not {self.backend.type}'
            )
        if twice := set(self.expected_models) & self.lora.adapters.keys():
            raise ValueError(f"expected_models: {min(twice)} is an adapter, which is loaded after the models were seen")
        if not is_loopback(self.host) and self.api_key_file is None:
            # Its calls for adapters take any path.
            raise ValueError(f"lora: on {self.host} anybody could load any path into the server: set api_key_file")
        return self

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, value: str) -> str:
        if not is_service_name(value):
            raise ValueError("must be 1 to 128 of A-Z a-z 0-9 . _ - and begin with a letter or a digit")
        return value

    @field_validator("host", "advertise_host")
    @classmethod
    def _host_is_host(cls, value: str | None) -> str | None:
        if value is not None and not is_host(value):
            raise ValueError("must be a host name or an address")
        return value if value is None else bare(value)

    @model_validator(mode="after")
    def _level_is_vllms(self) -> "BabysitterSettings":
        if self.sleep.level is not None and self.backend.type != "vllm":
            raise ValueError(
                f"sleep.level: is for vllm; say by which calls a server of type {self.backend.type} sleeps and wakes"
            )
        return self

    @property
    def vllm_sleep_level(self) -> int | None:
        """By which of vLLM's levels its server sleeps: anybody who reaches it can make those calls, hence on loopback only."""
        return self.sleep.level if is_loopback(self.host) else None


def config_file(argv: Sequence[str], env: Mapping[str, str]) -> Path | None:
    """The file that `parse` would read, so that it can be watched."""
    parsed, _ = _parser().parse_known_args(argv)
    path = parsed.config or env.get(f"{ENV_PREFIX}CONFIG")
    return Path(path) if path else None


def parse(argv: Sequence[str], env: Mapping[str, str]) -> BabysitterSettings:
    """Settings from file, environment and flags; later ones win.

    Raises:
        SettingsError: They cannot be used.
        SystemExit: argparse's.
    """
    parsed = _parser().parse_args(argv)
    config = parsed.config or env.get(f"{ENV_PREFIX}CONFIG")
    of_file = file_layer(Path(config)) if config else None
    in_file = of_file.data.get("backend") if of_file else None
    of_flags = backend_layer(parsed, in_file if isinstance(in_file, dict) else {})
    if of_file is not None and _is_another(of_flags.data.get("backend", {}), in_file):
        of_file = replace(of_file, data={name: value for name, value in of_file.data.items() if name != "backend"})
    layers = [*_replica_layers(getattr(parsed, "replica_dir", None)), *([of_file] if of_file else [])]
    layers.append(env_layer(BabysitterSettings, ENV_PREFIX, env))
    layers.append(flag_layer(BabysitterSettings, ENV_PREFIX, parsed))
    layers.append(of_flags)
    return build(BabysitterSettings, layers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="svc-babysitter",
        description=(BabysitterSettings.__doc__ or "").split("\n\n", maxsplit=1)[0],
        epilog="Flags win over the environment, which wins over the file.",
        allow_abbrev=False,
    )
    parser.add_argument("--config-file", "--config", metavar="FILE", dest="config", help="TOML file of settings")
    add_flags(parser, BabysitterSettings, ENV_PREFIX)
    add_backend_flags(parser)
    return parser


def _is_another(of_flags: Table, in_file: object) -> bool:
    """True when the flags give a backend of another type: nothing of the file's is meant for it."""
    kind = str(in_file.get("type", "")).lower() if isinstance(in_file, Mapping) else ""
    return bool(kind) and of_flags.get("type", kind) != kind


def _replica_layers(replica_dir: str | None) -> list[Layer]:
    """What `--replica-dir ROOT/ID` means: everything of the replica is under ROOT, and it outlives its babysitter.

    Its server is that of backend.json, which an agent made of a template, else a release server's.

    Raises:
        SettingsError: backend.json cannot be read.
    """
    if replica_dir is None:
        return []
    directory = Path(replica_dir).absolute()
    meant = {"name": directory.name, "on_exit": "detach", "log_dir": str(directory)}
    rendered = directory / RENDERED
    if rendered.exists():
        return [Layer(str(rendered), {**file_layer(rendered).data, **meant}, {})]
    backend = {"type": "cbclient", "request": str(directory / "request.json")}
    return [Layer(f"replica directory {directory}", {**meant, "backend": backend}, {})]
