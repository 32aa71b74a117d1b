"""What every replica of this node gets alike: its babysitter's settings, environment, address and token."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from babysitter.agent.settings import ENV_PREFIX, PLAIN_ENV, AgentSettings, babysitter_settings
from babysitter.agent.templates import SHIPPED
from babysitter.assemble import WILDCARDS
from babysitter.cbclient.params import merged
from common import own_python
from common.atomic_file import write_atomic
from common.exits import ConfigurationError
from common.http.access import is_loopback, read_token
from common.names import bind_address
from common.service import TlsSettings
from common.settings import file_layer
from common.wire.address import url
from common.wire.base import JsonObject

STOP_MARGIN_S = 30.0
TOKEN_BYTES = 32
NOT_INHERITED = (ENV_PREFIX, "SVC_LAUNCHED")


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """What a replica is started with.

    `settings` is the content of each `babysitter.json`; `stop_limit_s` is how long a babysitter may take to end its server.
    """

    root: Path
    command: tuple[str, ...]
    env: Mapping[str, str]
    settings: bytes
    local_host: str
    token: str | None
    stop_limit_s: float
    wheel_dirs: tuple[Path, ...] = ()
    model_dirs: tuple[Path, ...] = ()
    templates_dir: Path = SHIPPED
    headers: Mapping[str, str] = field(default_factory=dict)
    scheme: str = "http"

    def babysitter_url(self, port: int) -> str:
        """Where the babysitter of a server at `port` answers us."""
        return url(self.local_host, port + 1, scheme=self.scheme)


def make_launch_spec(settings: AgentSettings, env: Mapping[str, str], root: Path) -> LaunchSpec:
    """Everything from the settings, judged.

    Raises:
        ConfigurationError: A babysitter would refuse it.
    """
    judged = babysitter_settings(settings, env)
    operators = file_layer(settings.babysitter_config).data if settings.babysitter_config is not None else {}
    ours, tls = _settings(settings), _tls_settings(settings)
    token = None
    if judged.api_token_file is not None:
        token = read_token(judged.api_token_file)
    elif not is_loopback(settings.servers_host):
        path = root / "babysitter.token"
        if not path.exists():
            write_atomic(path, f"{secrets.token_hex(TOKEN_BYTES)}\n".encode())
        token = read_token(path)
        ours["api_token_file"] = str(path)
    address = bind_address(settings.servers_host)
    client, restarts = judged.cbclient, judged.babysitter
    roots = (client.workspace, client.artifact_cache, client.release_stage)
    return LaunchSpec(
        root=root,
        command=settings.babysitter_command,
        env=own_python.environment(
            {name: value for name, value in env.items() if name not in PLAIN_ENV and not name.startswith(NOT_INHERITED)}
        ),
        settings=json.dumps(merged(tls | operators, ours), indent=1).encode() + b"\n",
        local_host=WILDCARDS.get(address, address),
        token=token,
        stop_limit_s=restarts.drain_timeout_s + restarts.stop_grace_s + judged.jobs.cancel_timeout_s + STOP_MARGIN_S,
        wheel_dirs=(*client.wheel_dirs, *(path for path in roots if path is not None)),
        model_dirs=settings.model_dirs,
        templates_dir=_templates_dir(settings),
        headers={"Authorization": f"Bearer {token}"} if token else {},
        scheme="https" if judged.tls_cert_file or settings.tls_cert_file else "http",
    )


def _tls_settings(settings: AgentSettings) -> JsonObject:
    """Certificates and CAs that babysitters have like the agent, unless the operator's file says otherwise."""
    names = [name for name in TlsSettings.model_fields if getattr(settings, name) is not None]
    return {name: str(getattr(settings, name).absolute()) for name in names}


def _templates_dir(settings: AgentSettings) -> Path:
    """Where the templates are.

    Raises:
        ConfigurationError: The folder that the operator named is none.
    """
    if settings.templates_dir is None:
        return SHIPPED
    if not settings.templates_dir.is_dir():
        raise ConfigurationError(f"templates_dir {settings.templates_dir}: is no folder")
    return settings.templates_dir.absolute()


def _settings(settings: AgentSettings) -> JsonObject:
    """What the agent's own settings mean for a babysitter; what is not set is left to the operator's file."""
    probes = {
        "start_interval_s": settings.default_poll_interval_s,
        "readiness_timeout_s": settings.default_readiness_timeout_s,
        "port_timeout_s": settings.default_port_discovery_timeout_s,
    }
    is_local = settings.runner == "local"
    top = {
        "host": settings.servers_host,
        "on_exit": "detach" if is_local else "stop",  # its server outlives it, and us; a job's ends with the job
        "advertise_host": settings.advertise_host if is_local else None,
        "registry_url": list(settings.registry_url) or None,
        "router_url": settings.router_url,
        "token_file": str(settings.registry_token_file.absolute()) if settings.registry_token_file else None,
        "metadata": {"node": settings.node},
        "probes": {name: value for name, value in probes.items() if value is not None} or None,
    }
    return {name: value for name, value in top.items() if value is not None}
