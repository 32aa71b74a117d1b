"""The routers that watch this registry, by what they say of themselves: for the page and for Prometheus. Soft state.

A router is known while its watch is open, and a little longer, so that one which comes back was never gone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.clock import Clock
from common.wire.registry import Peer

LINGER_S = 20.0
MOST = 256


@dataclass(slots=True)
class _Presence:
    peer: Peer
    watches: int = 0
    left_at: float = 0.0


class Routers:
    """Who watches.

    Args:
        clock: Monotonic time.
    """

    def __init__(self, clock: Clock) -> None:
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

    @contextmanager
    def watching(self, peer: Peer | None) -> Iterator[None]:
        """While its watch is open."""
        if peer is None or (peer.name not in self._present and len(self._present) >= MOST):
            yield
            return
        presence = self._present.setdefault(peer.name, _Presence(peer))
        presence.peer = peer
        presence.watches += 1
        try:
            yield
        finally:
            presence.watches -= 1
            presence.left_at = self._clock.monotonic()
