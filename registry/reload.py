"""What a running registry takes over from changed settings, tokens and lists of addresses; the rest needs a restart."""

from registry.access import address_policy, agent_token_of, guard_of
from registry.http.context import Registry
from registry.settings import RegistrySettings


def put_in_force(registry: Registry, settings: RegistrySettings) -> None:
    """Take all of the settings or none.

    Raises:
        ConfigurationError: They cannot be used.
    """
    guard, policy = guard_of(settings), address_policy(settings)
    agent_token = agent_token_of(settings)
    material = registry.tls.read()
    registry.tls.put(material)
    if guard.grants != registry.guard.grants:
        registry.guard = guard
        registry.hub.dismiss()
    registry.agents.token = agent_token
    registry.keeper.take(hand_over=settings.hand_over)
    registry.usage.hours_days, registry.usage.days = settings.usage_hours_days, settings.usage_days
    registry.addresses = registry.resolver.policy = policy
    registry.catalogue.capacity = settings.max_services
    registry.pace.most_per_s = settings.max_heartbeats_per_second
    registry.hub.limit = settings.max_watchers
    registry.connections.limit = settings.max_connections
    registry.prober.retime(
        interval_s=settings.health_interval,
        timeout_s=settings.health_timeout,
        concurrency=settings.probe_concurrency,
    )
