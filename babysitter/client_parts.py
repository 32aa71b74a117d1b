"""What a babysitter has besides that deploys a release server's client: its request, its deployer, its files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from babysitter.backend_settings import SERVER_WORDS
from babysitter.cbclient.deploy import ClientDeployer
from babysitter.cbclient.modes import MODES
from babysitter.cbclient.request import CheckedRequest, load
from babysitter.cbclient.rules import Rules
from babysitter.cbclient.wheels import Roots
from babysitter.settings import BabysitterSettings
from babysitter.spec import Requested
from common.clock import Clock
from common.exits import ConfigurationError
from common.wire.create import Timeouts

NO_IMAGE = (
    "the server is told no image (--cbcore): set cbclient.image_registry, the REGISTRY of REGISTRY/cbcore:TAG, in the file "
    "that the agent's babysitter_config names"
)


@dataclass(frozen=True, slots=True)
class ClientParts:
    """What its spec is made of besides the settings."""

    asked: Timeouts | None
    requested: Requested
    deployer: ClientDeployer
    workdir: Path
    stdout: Path
    stderr: Path
    run_meta: Path
    diagnostics: bool


def read(
    settings: BabysitterSettings, file: Path, *, mark: str, clock: Clock, environ: Mapping[str, str]
) -> ClientParts:
    """The parts for the request in `file`.

    Raises:
        ConfigurationError: The request does not exist or is of no use, or there is no directory for it.
    """
    request, workdir = load(file), _own_directory(settings)
    rules = make_rules(settings)
    deployer = ClientDeployer(request, workdir, settings.port, rules, mark=mark, clock=clock, environ=environ)
    prefix = MODES[request.server_mode].logs
    return ClientParts(
        request.timeouts,
        requested_of(request, settings),
        deployer,
        workdir,
        workdir / f"{prefix}_stdout.log",
        workdir / f"{prefix}_stderr.log",
        deployer.model_dir / "cerebras_logs" / "run_meta.json",
        request.run_diagnostics,
    )


def requested_of(request: CheckedRequest, settings: BabysitterSettings) -> Requested:
    """What every report says of the request."""
    return Requested(
        server_mode=request.server_mode,
        model_name=request.model_name,
        multibox=request.placement.multibox,
        namespace=request.placement.namespace,
        request_id=request.request_id,
        metadata=request.metadata,
        warnings=warnings_of(request, settings),
    )


def warnings_of(request: CheckedRequest, settings: BabysitterSettings) -> tuple[str, ...]:
    """What the operator should know of a request that is carried out all the same."""
    runconfig = request.full_config.get("runconfig")
    named = isinstance(runconfig, Mapping) and runconfig.get("cbcore_image")
    if not MODES[request.server_mode].image or not request.app_tag or named or settings.cbclient.image_registry:
        return ()
    return (NO_IMAGE,)


def make_rules(settings: BabysitterSettings) -> Rules:
    """How clients are deployed."""
    config = settings.cbclient
    return Rules(
        index_url=config.index_url,
        ca_file=config.ca_file,
        trusted_hosts=config.trusted_hosts,
        python=config.python,
        own_python=config.own_python,
        roots=Roots(config.workspace, config.artifact_cache, config.release_stage),
        wheel_dirs=config.wheel_dirs,
        image_registry=config.image_registry,
        module=config.module,
        scripts=config.scripts,
        command=config.command,
        script_command=("{python}", "{script}", *SERVER_WORDS),
        skip_version_check=config.disable_version_check,
        only_binary=not config.allow_source,
        stage_timeout_s=config.stage_timeout_s,
        tries=config.tries,
        retry_delay_s=config.retry_delay_s,
        grace_s=settings.babysitter.stop_grace_s,
    )


def _own_directory(settings: BabysitterSettings) -> Path:
    """The directory ROOT/ID of a replica that an agent made.

    Raises:
        ConfigurationError: None is given.
    """
    if settings.replica_dir is None:
        raise ConfigurationError(f"{settings.name}: a cbclient backend needs --replica-dir ROOT/ID")
    return settings.replica_dir.absolute()
