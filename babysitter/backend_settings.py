"""What a babysitter can be told of its server: one table for each type, and how a release server's clients are deployed."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from common.settings import CommaList, Settings, option

SERVER_WORDS = tuple(
    "--params {params} --fastapi --port {port} --mgmt_namespace {namespace} --logfile {logfile} {flags}".split()  # noqa: SIM905 - a command line reads best as one
)


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
    launch_script: str | None = option(
        None, "The script that serves; unset: the first launch_server.py of several places.", flags=(), min_length=1
    )
    args: tuple[str, ...] = option((), "Further arguments.", flags=())
    work_dir: str | None = option(None, "Its working directory; unset: the folder above the script's.", flags=())
    env: dict[str, str] = option(dict, "Added to its environment.", flags=())


class InfinilmRustBackend(Settings):
    """InfiniLM's Rust server."""

    type: Literal["infinilm-rust"]
    config_file: str = option(..., "The server's own configuration.", flags=(), min_length=1)
    work_dir: str | None = option(None, "Its working directory.", flags=())
    env: dict[str, str] = option(dict, "Added to its environment.", flags=())


class CbclientBackend(Settings):
    """A release server's replica: its client is deployed from a package index first."""

    type: Literal["cbclient"]
    request: Path = option(..., "The create request, a JSON file.", flags=())


class CbclientSettings(Settings):
    """`[cbclient]`: how clients are deployed. Nothing here is one company's but the default index."""

    index_url: str = option(
        "https://devpi.cerebras.aws/root/main/+simple/", "The one package index; may hold credentials.",
        flags=["--index-url"], env=["PIP_INDEX_URL"],
    )  # fmt: skip
    ca_file: Path | None = option(
        None, "CA certificates that vouch for the index, in place of the machine's own.", flags=(), env=["PIP_CERT"],
    )  # fmt: skip
    trusted_hosts: CommaList = option(
        (), "Hosts whose index may be asked without TLS.", flags=(), env=["PIP_TRUSTED_HOST"]
    )
    python: str = option(sys.executable, "Interpreter of the environments.", flags=())
    own_python: bool = option(
        False, "A request that names no build runs with `python` as it is, as the release server did.", flags=()
    )
    workspace: Path | None = option(None, "Searched first for wheels, in build/appliance/.", flags=())
    artifact_cache: Path | None = option(None, "Searched for wheels in 2*/, and last at its top.", flags=())
    release_stage: Path | None = option(None, "Searched for wheels in */*/*/components[/cbcore]/.", flags=())
    wheel_dirs: tuple[Path, ...] = option((), "Directories that a request's own wheel may lie in.", flags=())
    image_registry: str | None = option(None, "REGISTRY of the image REGISTRY/cbcore:TAG.", flags=())
    module: str = option("cerebras.inference.workload.main", "The server's module.", flags=())
    scripts: tuple[str, ...] = option(
        tuple(f"{place}appliance_host_inference.py" for place in ("cerebras/", "cerebras/appliance/", "")),
        "The older server, a script in site-packages, for clients without the module.", flags=(),
    )  # fmt: skip
    command: tuple[str, ...] = option(("{python}", "-m", "{module}", *SERVER_WORDS), "The server's command.", flags=())
    script_command: tuple[str, ...] | None = option(
        None, "Ignored, leave it out: an older server takes the words of the newer.", flags=(), retired=True
    )
    disable_version_check: bool = option(False, "Always add --disable_version_check.", flags=())
    allow_source: bool = option(False, "Allow packages that have to be built on this machine.", flags=())
    stage_timeout_s: float = option(1800.0, "Longest time of one tool of a stage, in seconds.", flags=(), gt=0)
    tries: int = option(3, "Tries of a stage.", flags=(), ge=1, le=10)
    retry_delay_s: float = option(10.0, "Wait before the second try, in seconds; grows to 60 s.", flags=(), ge=0)


def lower_type(value: Any) -> Any:
    """A table with its type in small letters: `InfiniLM-Rust` and `vLLM` are how the field writes the types."""
    if isinstance(value, Mapping) and isinstance(value.get("type"), str):
        return {**value, "type": value["type"].lower()}
    return value


Backend = CommandBackend | VllmBackend | MockBackend | InfinilmBackend | InfinilmRustBackend | CbclientBackend
BACKEND_LABELS = {
    "command": "command",
    "vllm": "vLLM",
    "mock": "mock",
    "infinilm": "InfiniLM",
    "infinilm-rust": "InfiniLM-Rust",
    "cbclient": "cbclient",
}
"""`metadata.type` of a babysitter's own record."""


def default_name(kind: Any, port: Any) -> str:
    """What a babysitter without a name is called, as the ancestor called it: `infinilm-TYPE-PORT`."""
    return f"infinilm-{str(kind).lower().replace(' ', '-')}-{port}"
