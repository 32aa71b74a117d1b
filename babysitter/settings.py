"""What a babysitter can be told: a TOML file, the environment, and the flags of both ancestors (CONTRACT.md 3)."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from babysitter.legacy_flags import add_backend_flags, backend_layer
from common.names import is_host, is_service_name
from common.service import ServiceSettings
from common.settings import (
    CommaList,
    Settings,
    SettingsError,
    add_flags,
    build,
    env_layer,
    file_layer,
    flag_layer,
    option,
)

ENV_PREFIX = "SVC_BABYSITTER_"
LAST_PORT = 65_534
"""The babysitter itself listens on the next one."""


class RestartSettings(Settings):
    """`[babysitter]`: how patiently the server is looked after."""

    max_restarts: int = option(10_000, "Restarts before giving up.", flags=["--max-restarts"], ge=0)
    restart_delay: float = option(
        5.0, "Wait before the first restart, in seconds; doubled to 60 s.", flags=["--restart-delay"], ge=0
    )
    heartbeat_interval: float = option(
        5.0, "Time between heartbeats, in seconds.", flags=["--heartbeat-interval"], gt=0, le=3600
    )
    restart_delay_max_s: float = option(60.0, "Longest wait before a restart, in seconds.", flags=(), gt=0)
    restart_reset_s: float = option(600.0, "After so many good seconds earlier failures are forgotten.", flags=(), gt=0)
    crash_loop_exits: int = option(5, "So many exits without ever being ready are a crash loop.", flags=(), ge=1)
    crash_loop_window_s: float = option(600.0, "Time in which they count, in seconds.", flags=(), gt=0)
    no_restart_codes: tuple[int, ...] = option((78, 125), "Exit codes that mean: do not restart.", flags=())
    stop_grace_s: float = option(30.0, "Time between SIGTERM and SIGKILL, in seconds.", flags=["--stop-grace"], ge=0)
    drain_s: float = option(30.0, "Longest wait for open requests before a stop, in seconds.", flags=["--drain"], ge=0)


class ProbeSettings(Settings):
    """`[probes]`: how the server is asked how it is."""

    start_interval_s: float = option(1.0, "Between two looks at a server that starts, in seconds.", flags=(), gt=0)
    interval_s: float = option(5.0, "Between two looks at a server that serves, in seconds.", flags=(), gt=0)
    timeout_s: float = option(2.0, "Of one look, in seconds.", flags=(), gt=0)
    unhealthy_after: int = option(3, "Bad looks in a row before the server is out of rotation.", flags=(), ge=1)
    healthy_after: int = option(2, "Good looks in a row before it is back.", flags=(), ge=1)
    liveness_s: float | None = option(60.0, "Restart a once ready server after so many bad seconds.", flags=(), gt=0)
    readiness_timeout_s: float | None = option(None, "Fail a start that takes longer, in seconds.", flags=(), gt=0)
    stall_s: float = option(1800.0, "A start whose log is silent for so many seconds is stalled.", flags=(), gt=0)
    end_stalled: bool = option(False, "End a stalled start instead of only telling.", flags=())


class CommandBackend(Settings):
    """Any program, as given."""

    type: Literal["command"]
    command: str = option(..., "The program; may hold several words.", flags=(), min_length=1)
    args: tuple[str, ...] = option((), "Its arguments.", flags=())
    work_dir: str | None = option(None, "Its working directory.", flags=())
    env: dict[str, str] = option(dict, "Added to its environment.", flags=())


class VllmBackend(Settings):
    """vLLM's OpenAI server."""

    type: Literal["vllm"]
    model: str = option(..., "Model name or path.", flags=(), min_length=1)
    args: tuple[str, ...] = option((), "Further arguments.", flags=())
    work_dir: str | None = option(None, "Its working directory.", flags=())
    env: dict[str, str] = option(dict, "Added to its environment.", flags=())


class MockBackend(Settings):
    """The suite's own mock server."""

    type: Literal["mock"]
    models: tuple[str, ...] = option(..., "Model ids that it serves.", flags=(), min_length=1)
    args: tuple[str, ...] = option((), "Further arguments (its knobs).", flags=())
    env: dict[str, str] = option(dict, "Added to its environment.", flags=())


class InfinilmBackend(Settings):
    """InfiniLM's Python server."""

    type: Literal["infinilm"]
    model_path: str = option(..., "Directory of the model.", flags=(), min_length=1)
    launch_script: str = option("launch_server.py", "The script that serves.", flags=(), min_length=1)
    args: tuple[str, ...] = option((), "Further arguments.", flags=())
    work_dir: str | None = option(None, "Its working directory.", flags=())
    env: dict[str, str] = option(dict, "Added to its environment.", flags=())


class InfinilmRustBackend(Settings):
    """InfiniLM's Rust server."""

    type: Literal["infinilm-rust"]
    config_file: str = option(..., "The server's own configuration.", flags=(), min_length=1)
    work_dir: str | None = option(None, "Its working directory.", flags=())
    env: dict[str, str] = option(dict, "Added to its environment.", flags=())


def _lower_type(value: Any) -> Any:
    """`InfiniLM-Rust` and `vLLM` are how the field writes the types."""
    if isinstance(value, Mapping) and isinstance(value.get("type"), str):
        return {**value, "type": value["type"].lower()}
    return value


Backend = CommandBackend | VllmBackend | MockBackend | InfinilmBackend | InfinilmRustBackend
BACKEND_LABELS = {
    "command": "command",
    "vllm": "vLLM",
    "mock": "mock",
    "infinilm": "InfiniLM",
    "infinilm-rust": "InfiniLM-Rust",
}
"""`metadata.type` of a babysitter's own record."""


class BabysitterSettings(ServiceSettings):
    """Start one inference server, watch it, restart it, report it to the registry, stop it.

    The server listens on `port`, the babysitter on `port + 1`.
    """

    name: str = option(..., "Name in the registry.", flags=["-n", "--name"])
    host: str = option("localhost", "Address of the server and of the babysitter.", flags=["--host"])
    port: int = option(..., "The server's port.", flags=["-p", "--port"], ge=1, le=LAST_PORT)
    registry_url: CommaList = option((), "Registries to report to.", flags=["--registry-url", "--registry"])
    router_url: str | None = option(None, "The router, shown in /info.", flags=["--router-url", "--router"])
    advertise_host: str | None = option(None, "Host that others reach the server at, when not `host`.")
    data_dir: Path = option(Path("data"), "Where the babysitter remembers.")
    log_dir: Path = option(Path("logs"), "Where the server's output goes.")
    on_exit: Literal["stop", "detach"] = option(
        "stop", "What SIGTERM does to the server: stop it, or leave it running."
    )
    token_file: Path | None = option(None, "Bearer token for the registry, in a 0600 file.")
    models: tuple[str, ...] = option((), "Ids of a server whose models call tells none.", flags=())
    expected_models: tuple[str, ...] = option((), "Ids that must be served before the server is ready.", flags=())
    metadata: dict[str, Any] = option(dict, "Merged into the service record.", flags=())
    weight: float | None = option(None, "Relative share of the requests.", flags=(), gt=0)
    babysitter: RestartSettings = Field(default_factory=RestartSettings)
    probes: ProbeSettings = Field(default_factory=ProbeSettings)
    backend: Annotated[Backend, Field(discriminator="type"), BeforeValidator(_lower_type)] = option(
        ..., "The server.", flags=()
    )

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
        return value


def parse(argv: Sequence[str], env: Mapping[str, str]) -> BabysitterSettings:
    """Settings from file, environment and flags; later ones win.

    Raises:
        SettingsError: They cannot be used.
        SystemExit: argparse's.
    """
    parser = argparse.ArgumentParser(
        prog="svc-babysitter",
        description=(BabysitterSettings.__doc__ or "").split("\n\n", maxsplit=1)[0],
        epilog="Flags win over the environment, which wins over the file.",
        allow_abbrev=False,
    )
    parser.add_argument("--config-file", "--config", metavar="FILE", dest="config", help="TOML file of settings")
    add_flags(parser, BabysitterSettings, ENV_PREFIX)
    add_backend_flags(parser)
    parsed = parser.parse_args(argv)
    config = parsed.config or env.get(f"{ENV_PREFIX}CONFIG")
    layers = [file_layer(Path(config))] if config else []
    in_file = layers[0].data.get("backend") if layers else None
    layers.append(env_layer(BabysitterSettings, ENV_PREFIX, env))
    layers.append(flag_layer(BabysitterSettings, ENV_PREFIX, parsed))
    layers.append(backend_layer(parsed, in_file if isinstance(in_file, Mapping) else {}))
    return build(BabysitterSettings, layers)


__all__ = ["BACKEND_LABELS", "BabysitterSettings", "SettingsError", "parse"]
