"""What the handlers work with, and the few words that all of them use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from common.clock import Clock
from common.http.audit import AuditLog
from common.http.errors import ApiError
from common.http.tls import Tls
from common.paced import paced
from common.wire.base import JsonObject, Message
from registry.core.catalogue import Catalogue, Entry
from registry.core.model import Unknown
from registry.core.pacing import Pace
from registry.core.writer import Writer
from registry.deployments.keeper import Keeper
from registry.fleet.agents import AgentClient
from registry.fleet.created import NewReplicas
from registry.fleet.doubts import Doubts
from registry.fleet.index import FleetIndex
from registry.fleet.routers import Routers
from registry.http.guard import Grant, Guard
from registry.keys.book import KeyBook
from registry.keys.lender import FleetLender
from registry.outbound.addresses import AddressPolicy
from registry.outbound.relay import PageRelay
from registry.outbound.sessions import GuardedResolver
from registry.probes.prober import HealthProber
from registry.usage.book import UsageBook
from registry.views.metrics import Metrics
from registry.views.render import Renderer, encode_json
from registry.views.watch import WatchHub

JSON_HEADERS = {"Content-Type": "application/json"}


@dataclass(slots=True)
class ConnectionLimit:
    """How many connections there are, counted now and then, and how many there may be (docs/faults.md C14)."""

    limit: int
    count: int = 0

    @property
    def full(self) -> bool:
        """There are too many."""
        return self.count > self.limit

    def check(self) -> None:
        """Turn a request away while there are too many.

        Raises:
            ApiError: 503; the connection is closed after it.
        """
        if self.full:
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
    keys: KeyBook
    lender: FleetLender
    clock: Clock
    usage: UsageBook
    resolver: GuardedResolver
    tls: Tls
    audit: AuditLog
    started_at: float
    pace: Pace
    deployment_streams: int = 0
    waiting_for_keys: int = 0


REGISTRY = web.AppKey("registry", Registry)
GRANT = web.RequestKey("grant", Grant)


def answer(
    content: Message | Sequence[Message] | JsonObject, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A JSON response."""
    return web.Response(body=encode_json(content), status=status, headers={**JSON_HEADERS, **(headers or {})})


COMPRESSED_FROM_BYTES = 64 << 10


class Pieces(Payload):
    """A body that is never put together."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        super().__init__(pieces, content_type="application/json")
        self._size = sum(map(len, pieces))

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The text."""
        return b"".join(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send one piece after the other, as the client takes them; one that takes all at once is no reason to hold others up."""
        async for piece in paced(self._value):
            await writer.write(piece)


def long_answer(pieces: Sequence[bytes], *, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON response that may be long, in pieces; compressed, by a thread, for a client that asks for it."""
    body = Pieces(pieces)
    response = web.Response(body=body, headers=headers)
    if body.size is not None and body.size >= COMPRESSED_FROM_BYTES:
        response.enable_compression()
    return response


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
