"""The address policy that the settings ask for."""

from common.http.access import is_loopback
from common.service import ConfigurationError
from registry.addresses import LOOPBACK, PRIVATE, AddressPolicy, networks
from registry.settings import RegistrySettings


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
