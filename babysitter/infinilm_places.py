"""Where InfiniLM's two servers are on this machine: its launch script, and the Rust `xtask` or the checkout that makes it."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from babysitter.backend_settings import InfinilmBackend, InfinilmRustBackend
from common.exits import ConfigurationError

PROJECT = Path(__file__).resolve().parent.parent
SCRIPT = "launch_server.py"
IN_CHECKOUT = Path("InfiniLM", "scripts", SCRIPT)
RUST_CHECKOUT = "InfiniLM-Rust"


def find_script(backend: InfinilmBackend) -> tuple[Path, Path]:
    """The launch script and its working directory: the backend's own, else the folder above the script's.

    Raises:
        ConfigurationError: There is none; names the places that were searched.
    """
    work_dir = Path(backend.work_dir).expanduser().absolute() if backend.work_dir else None
    places = list(dict.fromkeys(_places(backend.launch_script, work_dir)))
    script = next((place for place in places if place.is_file()), None)
    if script is None:
        remedy = (
            "" if backend.launch_script else "; name it with --launch-script (LAUNCH_SCRIPT, backend.launch_script)"
        )
        raise ConfigurationError(f"InfiniLM's launch script is not at {', '.join(map(str, places))}{remedy}")
    return script, work_dir or script.parent.parent


def _places(launch_script: str | None, work_dir: Path | None) -> Iterator[Path]:
    if launch_script is not None:
        yield (work_dir or Path.cwd()) / Path(launch_script).expanduser()
        return
    if work_dir is not None:
        yield work_dir / SCRIPT
        yield work_dir / "scripts" / SCRIPT
    for base in (Path("/workspace"), PROJECT.parent, PROJECT, Path.cwd()):
        yield base / IN_CHECKOUT


def with_cargo(env: Mapping[str, str]) -> dict[str, str]:
    """`env` with cargo's programs last on its PATH, where they are though no shell of the user's says so."""
    home = env.get("HOME")
    return {**env, "PATH": f"{env.get('PATH', os.defpath)}:{home}/.cargo/bin"} if home else dict(env)


def rust_command(
    argv: Sequence[str], backend: InfinilmRustBackend, env: Mapping[str, str]
) -> tuple[tuple[str, ...], Path | None]:
    """`argv` when there is an `xtask`, else `cargo xtask …` and the checkout that it has to run in.

    Raises:
        ConfigurationError: There is neither; names the places.
    """
    path = env.get("PATH", os.defpath)
    if shutil.which(argv[0], path=path) is not None:
        return tuple(argv), None
    own = [Path(backend.work_dir).expanduser().absolute()] if backend.work_dir else []
    places = list(dict.fromkeys([*own, *(base / RUST_CHECKOUT for base in (PROJECT.parent, PROJECT, Path.cwd()))]))
    checkout = next((place for place in places if (place / "Cargo.toml").is_file()), None)
    if checkout is None or shutil.which("cargo", path=path) is None:
        missing = "there is no cargo" if checkout else f"no checkout of InfiniLM-Rust at {', '.join(map(str, places))}"
        raise ConfigurationError(
            f"command {argv[0]!r} does not exist on PATH or in ~/.cargo/bin, and {missing}; install one of them"
        )
    return ("cargo", *argv), checkout
