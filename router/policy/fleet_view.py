"""PURE. What a worker believes of all replicas: a view of each, and what they have in common."""

from collections.abc import Collection, Sequence
from typing import Final

from router.model import Endpoint
from router.policy.blocks import seed_of
from router.policy.cache_size import Sizes
from router.policy.elsewhere import Elsewhere
from router.policy.pace import FLEET_FADE, Pace
from router.policy.replica_view import ReplicaView
from router.policy.shared import Shared
from router.policy.writing import Writing

FIRST_GUESS_BYTES: Final = 256 << 20
"""What a replica's cache is believed to hold before anything is known: large, for it can only be corrected from above."""
BLOCKS_LIMIT: Final = 400_000
"""Blocks remembered in all, per worker: about 50 MB."""
_REPACE_S: Final = 0.25


class FleetView:
    """All replicas of one worker, by endpoint id.

    Args:
        first_guess_bytes: What a replica's cache is believed to hold at first.
        blocks_limit: Blocks remembered in all.
        elsewhere: The other workers of this router, if there are any.
        read_ahead_s: Seconds of reading that a replica gets ahead, before prompts for it wait in line; 0: it gets all at once.
    """

    def __init__(
        self,
        *,
        first_guess_bytes: float = FIRST_GUESS_BYTES,
        blocks_limit: int = BLOCKS_LIMIT,
        elsewhere: Elsewhere | None = None,
        read_ahead_s: float = 0.0,
    ) -> None:
        self._shared = Shared(
            Pace(FLEET_FADE), Sizes(), Writing(), first_guess_bytes, blocks_limit, elsewhere, read_ahead_s
        )
        self._elsewhere = elsewhere
        self._by_tag: dict[int, ReplicaView] = {}
        self._blocks_limit = blocks_limit
        self._views: dict[str, ReplicaView] = {}
        self._repace_at = 0.0

    def views(self, candidates: Sequence[Endpoint], now: float) -> list[ReplicaView]:
        """What is believed of each of `candidates`."""
        if now >= self._repace_at or self._shared.unsettled:
            self._repace_at = now + _REPACE_S
            self._shared.unsettled = False
            for view in self._views.values():
                view.repace(now)
        if self._elsewhere is not None:
            self._hear(self._elsewhere)
        views = self._views
        try:
            return [views[endpoint.id] for endpoint in candidates]
        except KeyError:
            return [self.view(endpoint) for endpoint in candidates]

    def view(self, endpoint: Endpoint) -> ReplicaView:
        """What is believed of `endpoint`; an id never seen begins anew (D27)."""
        view = self._views.get(endpoint.id)
        if view is None:
            tag = seed_of(endpoint.id.encode())
            view = self._views[endpoint.id] = self._by_tag[tag] = ReplicaView(self._shared, endpoint.slot, tag)
            self._share()
        return view

    def keep(self, ids: Collection[str], now: float) -> None:
        """Forget every replica but these; who waits for one of those goes there all the same, to find out."""
        for name in [name for name in self._views if name not in ids]:
            self._views.pop(name).empty_line(now)
            self._by_tag.pop(seed_of(name.encode()), None)
        self._share()

    def settle(self, now: float) -> None:
        """Count as read what must be read by now, so that the other workers see it gone, and those in line have their turn."""
        for view in self._views.values():
            if view.reading:
                view.backlog_s(now)
            view.let_go(now)

    def _hear(self, elsewhere: Elsewhere) -> None:
        for tag, blocks in elsewhere.news():
            view = self._by_tag.get(tag)
            if view is not None:
                view.index.use(blocks)

    def _share(self) -> None:
        """Divide the memory; with many replicas one more or less changes nothing."""
        each = self._blocks_limit // max(1, len(self._views))
        if each == self._shared.blocks_each:
            return
        self._shared.blocks_each = each
        for view in self._views.values():
            view.index.limit_blocks = each
