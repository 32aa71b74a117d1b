"""What a running registry takes over from changed settings, tokens and lists of addresses; the rest needs a restart."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.http.access import read_token, require_guard
from registry.api import Registry
from registry.guard import Guard, make_guard
from registry.policy import address_policy
from registry.prober import GuardedResolver
from registry.settings import RegistrySettings


def files_of(settings: RegistrySettings) -> Iterator[Path]:
    """The token files, the agents' among them."""
    for text in (*settings.read_token_file, *settings.register_token_file, *settings.admin_token_file):
        yield Path(text.rpartition("=")[2])
    if settings.agent_token_file is not None:
        yield settings.agent_token_file


def guard_of(settings: RegistrySettings) -> Guard:
    """The guard that the settings want.

    Raises:
        ConfigurationError: A token file is of no use, or the network would be served without tokens.
    """
    guard = make_guard(settings.read_token_file, settings.register_token_file, settings.admin_token_file)
    require_guard("registry", settings.host, guarded=bool(guard.grants), insecure=settings.insecure_no_auth)
    return guard


def agent_token_of(settings: RegistrySettings) -> str | None:
    """What the node agents are shown; None when they want nothing.

    Raises:
        ConfigurationError: The file is of no use.
    """
    return read_token(settings.agent_token_file) if settings.agent_token_file else None


@dataclass(frozen=True, slots=True)
class Apply:
    """Puts settings in force in a registry that runs."""

    registry: Registry
    resolver: GuardedResolver

    def __call__(self, settings: RegistrySettings) -> None:
        """All of them or none.

        Raises:
            ConfigurationError: They cannot be used.
        """
        registry, guard, policy = self.registry, guard_of(settings), address_policy(settings)
        agent_token = agent_token_of(settings)
        if guard.grants != registry.guard.grants:
            registry.guard = guard
            registry.hub.dismiss()
        registry.fleet.token = agent_token
        registry.addresses = self.resolver.policy = registry.routers.policy = policy
        registry.catalogue.capacity = settings.max_services
        registry.hub.limit = settings.max_watchers
        registry.crowd.limit = settings.max_connections
        registry.prober.retime(
            interval_s=settings.health_interval,
            timeout_s=settings.health_timeout,
            concurrency=settings.probe_concurrency,
        )
