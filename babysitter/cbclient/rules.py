"""What the operator configured for deployments, and what a request is resolved to."""

from dataclasses import dataclass
from pathlib import Path

from babysitter.cbclient.packages import EnvironmentSpec
from babysitter.cbclient.wheels import Roots


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator configured. Durations in seconds."""

    index_url: str
    ca_file: Path | None
    trusted_hosts: tuple[str, ...]
    python: str
    own_python: bool
    roots: Roots
    wheel_dirs: tuple[Path, ...]
    image_registry: str | None
    module: str
    scripts: tuple[str, ...]
    command: tuple[str, ...]
    script_command: tuple[str, ...]
    skip_version_check: bool
    only_binary: bool
    stage_timeout_s: float
    tries: int
    retry_delay_s: float
    grace_s: float


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the `resolve` stage found out. `prefix` is an environment that is there already and no package is put into."""

    spec: EnvironmentSpec
    key: str
    image: str | None
    prefix: Path | None = None
