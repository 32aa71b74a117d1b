"""The command of a deployed client's server: checks that its packages are of one build, and finds its entry point."""

from collections.abc import Mapping
from pathlib import Path

from babysitter.attempt import ServerCommand
from babysitter.cbclient.modes import MODES
from babysitter.cbclient.packages import EnvironmentSpec
from babysitter.cbclient.params import server_environment, server_flags
from babysitter.cbclient.request import CheckedRequest
from babysitter.cbclient.rules import Rules
from babysitter.cbclient.versions import canonical
from babysitter.spec import DeployError
from babysitter.template import fill

DEFAULT_PRIORITY = "p2"
NEVER_PASSED_ON = ("SVC_", "PIP_")
"""Prefixes of our own settings and of pip's, which may hold credentials (B18)."""


def make_command(
    request: CheckedRequest,
    rules: Rules,
    *,
    workdir: Path,
    port: int,
    spec: EnvironmentSpec,
    image: str | None,
    skip_version_check: bool,
    environ: Mapping[str, str],
) -> ServerCommand:
    """The server's command: the module when the environment has it, else the older script.

    Raises:
        DeployError: There is neither, or two builds are mixed.
    """
    mode = MODES[request.server_mode]
    if mode.is_gateway and request.gateway_config.mock_backend:
        mode = mode.mocked()
    venv = workdir / "cbclient"
    site = next(iter(sorted(venv.glob("lib/python*/site-packages"))), venv)
    check_build(site, spec)
    relative = Path(*rules.module.split("."))
    has_module = (site / relative).with_suffix(".py").is_file() or (site / relative / "__main__.py").is_file()
    script = next((site / name for name in rules.scripts if (site / name).is_file()), None)
    if not has_module and script is None:
        raise DeployError(f"verify: neither the module {rules.module} nor a script of {rules.scripts} is in {site}")
    words = {
        "python": str(venv / "bin" / "python"),
        "module": rules.module,
        "script": str(script or ""),
        "params": str(workdir / "params.yaml"),
        "port": str(port),
        "namespace": request.placement.namespace,
        "logfile": str(workdir / f"{mode.logs}_server.log"),
        "workdir": str(workdir),
    }
    flags = server_flags(mode, image=image, skip_version_check=skip_version_check or rules.skip_version_check)
    task = server_environment(
        model_name=request.model_name,
        workdir=str(workdir),
        multibox=request.placement.multibox,
        namespace=request.placement.namespace,
        mode=mode,
        job_priority=request.job_priority or DEFAULT_PRIORITY,
        app_tag=request.app_tag,
        port=port,
        full_config=str(workdir / "params.yaml"),
    )
    inherited = {name: value for name, value in environ.items() if not name.startswith(NEVER_PASSED_ON)}
    return ServerCommand(
        argv=tuple(fill(rules.command if has_module else rules.script_command, words, flags)),
        env={**inherited, **task},
        cwd=workdir,
        stdout=workdir / f"{mode.logs}_stdout.log",
        stderr=workdir / f"{mode.logs}_stderr.log",
        grace_s=rules.grace_s,
    )


def check_build(site: Path, spec: EnvironmentSpec) -> None:
    """Every package of the suite that is there must be of the one build that was asked for.

    Raises:
        DeployError: One is not.
    """
    if spec.version is None or spec.client_wheel is not None or spec.appliance_wheel is not None:
        return
    for info in site.glob("cerebras*.dist-info"):
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        if canonical(version) != canonical(spec.version):
            raise DeployError(f"verify: {name} is {version}, not {canonical(spec.version)}: two builds are mixed")
