"""PURE. What one replica's prefix cache is believed to hold: the blocks placed there, least recently used forgotten first.

Age is measured as the cache itself would: in bytes of other blocks used since. Exact order would need a tree; instead,
blocks carry the number of a generation, a generation is closed once it has taken in a 32nd of what is held, and the age of
a generation is the sum of what is still in the later ones. Everything at or after `_oldest` counts as held.

Along a prompt's chain the generation never rises, for whoever uses a block uses all before it. So the length of a match
is found by bisection: a look-up costs O(log blocks), taking note of a placement O(blocks).
"""

from collections.abc import Sequence
from typing import Final

from router.policy.blocks import bytes_of

_GENERATIONS: Final = 32
_LEAST_GENERATION_BYTES: Final = 16384


class PrefixIndex:
    """One replica's blocks.

    Args:
        capacity_bytes: What the replica is believed to hold, in bytes of prompt text.
        limit_bytes: Most that is remembered, whatever the capacity: older blocks are kept up to it, no longer counted as
            held, so that a capacity believed too small can be corrected.
        limit_blocks: Most blocks that are remembered, which bounds the memory (about 120 bytes each).
    """

    __slots__ = (
        "_entries",
        "_generation",
        "_held_bytes",
        "_live",
        "_moved",
        "_oldest",
        "_stamps",
        "_taken_bytes",
        "_total_bytes",
        "capacity_bytes",
        "limit_blocks",
        "limit_bytes",
    )

    def __init__(self, capacity_bytes: float, *, limit_bytes: float, limit_blocks: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.limit_bytes = limit_bytes
        self.limit_blocks = limit_blocks
        self._stamps: dict[int, int] = {}
        self._generation = 0
        self._oldest = 0
        self._live: dict[int, int] = {0: 0}
        """Bytes of the blocks last used in each generation, in order; without those that have none left."""
        self._moved: dict[int, list[int]] = {0: []}
        """Blocks used in each generation; some were used again since."""
        self._entries = 0
        """Of all lists in `_moved`."""
        self._taken_bytes = 0
        self._held_bytes = 0
        self._total_bytes = 0

    def __len__(self) -> int:
        return len(self._stamps)

    def held(self, blocks: Sequence[int]) -> int:
        """How many of the first `blocks` are believed to be held."""
        return self._matched(blocks, self._oldest)

    def known(self, blocks: Sequence[int]) -> int:
        """How many of the first `blocks` are remembered, held or not."""
        return self._matched(blocks, 0)

    def _matched(self, blocks: Sequence[int], oldest: int) -> int:
        get = self._stamps.get
        if not blocks or get(blocks[0], -1) < oldest:
            return 0
        low, high = 1, len(blocks)
        while low < high:
            middle = (low + high + 1) >> 1
            if get(blocks[middle - 1], -1) >= oldest:
                low = middle
            else:
                high = middle - 1
        return low

    def ages(self, blocks: Sequence[int], positions: Sequence[int]) -> list[float]:
        """Bytes used since each of the remembered blocks at `positions`: how long ago, as the cache counts."""
        used = [self._stamps.get(blocks[position], 0) for position in positions]
        last = min(used)
        ages: dict[int, float] = {}
        later = 0.0
        for generation in reversed(self._live):
            live = self._live[generation]
            ages[generation] = later + live / 2
            if generation <= last:
                break
            later += live
        return [ages.get(stamp, later) for stamp in used]

    def use(self, blocks: Sequence[int]) -> None:
        """A prompt of `blocks` was placed here."""
        stamps, now, live = self._stamps, self._generation, self._live
        fresh, present = self._matched(blocks, now), self._matched(blocks, 0)
        if fresh == len(blocks):
            return
        thinned: list[int] = []
        position = fresh
        while position < present:
            # One run of blocks last used together: usually all of an earlier prompt.
            old = stamps[blocks[position]]
            run = max(self._matched(blocks, old), position + 1)
            size = bytes_of(run) - bytes_of(position)
            if old in live:  # else hashes collided, by somebody's design: no harm but a wrong sum
                live[old] -= size
                thinned.append(old)
            if old < self._oldest:
                self._held_bytes += size
            position = run
        stamps.update(dict.fromkeys(blocks[fresh:], now))
        end = bytes_of(len(blocks))
        taken, new = end - bytes_of(fresh), end - bytes_of(present)
        live[now] += taken
        self._moved[now] += blocks[fresh:]
        self._entries += len(blocks) - fresh
        self._held_bytes += new
        self._total_bytes += new
        self._taken_bytes += taken
        for generation in thinned:
            if live.get(generation, 1) <= 0:
                self._drop(generation)
        if self._taken_bytes > max(_LEAST_GENERATION_BYTES, self._held_bytes / _GENERATIONS):
            self._generation = now + 1
            live[now + 1] = 0
            self._moved[now + 1] = []
            self._taken_bytes = 0
        self._fit()

    def resize(self, capacity_bytes: float) -> None:
        """The replica turned out to hold more or less than was believed."""
        self.capacity_bytes = capacity_bytes
        self._held_bytes = 0
        self._oldest = self._generation
        for generation in reversed(self._live):
            if self._held_bytes + self._live[generation] > capacity_bytes and generation != self._generation:
                break
            self._held_bytes += self._live[generation]
            self._oldest = generation

    def _fit(self) -> None:
        """Count as held no more than the capacity, remember no more than the limits; the newest generation stays."""
        live = self._live
        while self._held_bytes > self.capacity_bytes and self._oldest < self._generation:
            self._held_bytes -= live.get(self._oldest, 0)
            self._oldest += 1
        while self._total_bytes > self.limit_bytes or self._entries > self.limit_blocks:
            first = next(iter(live))
            if first == self._generation:
                return
            self._drop(first)

    def _drop(self, generation: int) -> None:
        """Forget the blocks last used in a generation."""
        stamps = self._stamps
        blocks = self._moved.pop(generation)
        self._entries -= len(blocks)
        live = self._live.pop(generation)
        if live:
            self._total_bytes -= live
            if generation >= self._oldest:
                self._held_bytes -= live
            for block in blocks:
                if stamps.get(block) == generation:
                    del stamps[block]
