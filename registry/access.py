"""What the settings say of access: who may call, with which tokens, and which addresses may be registered."""

from collections.abc import Iterator
from pathlib import Path

from common.exits import ConfigurationError
from common.http.access import is_loopback, read_token, require_guard
from registry.http.guard import Guard, make_guard
from registry.outbound.addresses import LOOPBACK, PRIVATE, AddressPolicy, networks
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


def address_policy(settings: RegistrySettings) -> AddressPolicy:
    """What may be registered: private networks, and loopback where the registry itself is on loopback.

    Raises:
        ConfigurationError: An allowed network is none.
    """
    local = is_loopback(settings.host) or settings.insecure_no_auth
    chosen = settings.allowed_networks or (PRIVATE + LOOPBACK if local else PRIVATE)
    try:
        allowed = networks(chosen)
    except ValueError as error:
        raise ConfigurationError(f"--allowed-networks: {error}") from error
    return AddressPolicy(
        allowed, frozenset(settings.allowed_hosts), settings.lowest_port, own=(settings.host, settings.port)
    )
