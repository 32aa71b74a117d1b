"""What the handlers work with, and the few words that all of them use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiohttp import web

from common.http.errors import ApiError
from common.wire.base import JsonObject, Message
from registry.core.catalogue import Catalogue, Entry
from registry.core.model import Unknown
from registry.core.writer import Writer
from registry.deployments.keeper import Keeper
from registry.fleet.agents import AgentClient
from registry.fleet.created import NewReplicas
from registry.fleet.doubts import Doubts
from registry.fleet.index import FleetIndex
from registry.fleet.routers import Routers
from registry.http.guard import Grant, Guard
from registry.outbound.addresses import AddressPolicy
from registry.outbound.relay import PageRelay
from registry.outbound.sessions import GuardedResolver
from registry.probes.prober import HealthProber
from registry.views.metrics import Metrics
from registry.views.render import Renderer, encode_json
from registry.views.watch import WatchHub

JSON_HEADERS = {"Content-Type": "application/json"}


@dataclass(slots=True)
class ConnectionLimit:
    """How many connections there are, counted now and then, and how many there may be (docs/faults.md C14)."""

    limit: int
    count: int = 0

    def check(self) -> None:
        """Turn a request away while there are too many.

        Raises:
            ApiError: 503; the connection is closed after it.
        """
        if self.count > self.limit:
            raise ApiError(503, "too many connections", headers={"Retry-After": "5", "Connection": "close"})


@dataclass(slots=True)
class Registry:
    """What the handlers work with; a reload replaces `guard` and `addresses`."""

    catalogue: Catalogue
    writer: Writer
    renderer: Renderer
    hub: WatchHub
    prober: HealthProber
    metrics: Metrics
    guard: Guard
    addresses: AddressPolicy
    connections: ConnectionLimit
    relay: PageRelay
    routers: Routers
    doubts: Doubts
    on_loopback: bool
    agents: AgentClient
    index: FleetIndex
    created: NewReplicas
    keeper: Keeper
    resolver: GuardedResolver
    started_at: float
    deployment_streams: int = 0


REGISTRY = web.AppKey("registry", Registry)
GRANT = web.RequestKey("grant", Grant)


def answer(
    content: Message | Sequence[Message] | JsonObject, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A JSON response."""
    return web.Response(body=encode_json(content), status=status, headers={**JSON_HEADERS, **(headers or {})})


def require_entry(request: web.Request) -> Entry:
    """The entry that the path names.

    Raises:
        Unknown: There is none.
    """
    name = request.match_info["name"]
    entry = request.app[REGISTRY].catalogue.get(name)
    if entry is None:
        raise Unknown(f"service {name!r} not found")
    return entry
