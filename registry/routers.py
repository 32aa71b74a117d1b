"""The routers that watch this registry, by what they say of themselves: for the page and for Prometheus. Soft state.

A router is known while its watch is open, and a little longer, so that one which comes back was never gone. Whoever may
not register is not believed: the page sends prompts and keys to these addresses.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from common.clock import Clock
from common.http.errors import ApiError
from registry.addresses import AddressPolicy, AddressRefused
from registry.guard import Grant, Level
from registry.schema import RouterPresence, parse

log = structlog.get_logger(__name__)
LINGER_S = 20.0
MOST = 256


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody that the registry may ask for the page."""

    name: str
    url: str


@dataclass(slots=True)
class _Presence:
    peer: Peer
    watches: int = 0
    left_at: float = 0.0


class Routers:
    """Who watches.

    Args:
        policy: Which addresses are believed.
        clock: Monotonic time.
    """

    def __init__(self, policy: AddressPolicy, clock: Clock) -> None:
        self.policy = policy
        self._clock = clock
        self._present: dict[str, _Presence] = {}

    def __iter__(self) -> Iterator[Peer]:
        now = self._clock.monotonic()
        gone = [key for key, one in self._present.items() if not one.watches and now - one.left_at > LINGER_S]
        for key in gone:
            del self._present[key]
        return iter([one.peer for _, one in sorted(self._present.items())])

    def get(self, name: str) -> Peer | None:
        """The router of this name."""
        return next((peer for peer in self if peer.name == name), None)

    def identify(self, query: Mapping[str, str], grant: Grant) -> Peer | None:
        """The router that a watch's parameters name, if there is one and it is believed; its watch goes on anyway."""
        if "router" not in query:
            return None
        try:
            said = parse(RouterPresence, {name: query[name] for name in ("router", "router_url") if name in query})
            grant.check(Level.REGISTER, said.router)
            self.policy.check_url(said.router_url)
        except (ApiError, AddressRefused) as error:
            log.warning("router.not_believed", router=query["router"][:128], reason=str(error))
            return None
        return Peer(said.router, said.router_url)

    @contextmanager
    def watching(self, peer: Peer | None) -> Iterator[None]:
        """While its watch is open."""
        if peer is None or (peer.name not in self._present and len(self._present) >= MOST):
            yield
            return
        known = self._present.setdefault(peer.name, _Presence(peer))
        known.peer = peer
        known.watches += 1
        try:
            yield
        finally:
            known.watches -= 1
            known.left_at = self._clock.monotonic()
