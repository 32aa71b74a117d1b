"""What those who place requests tell each other through memory: gauges on the counters, and rings of blocks.

Each worker has a ring, and one more has what other routers placed, which the master writes (`peers.py`). A ring has one
writer; everybody else reads along. A record is a replica's tag, a count, and that many hashes. The first cell counts all cells
ever written, and is written last. A reader that was lapped, even while it copied, drops what it has and goes on at the front:
placements may be lost on the way, but none is made up.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Final

from router.counters import (
    HEAD_AT_US,
    HEAD_BYTES,
    IN_FLIGHT,
    READ_AT_US,
    READING_BYTES,
    RING_CELLS,
    WORK_BYTES,
    SharedCounters,
)

_ROOM = RING_CELLS - 1
RECORD_LIMIT: Final = 512
"""Blocks of one placement; of a longer prompt the rest is not told."""
_HEAD_CELLS: Final = 2


class RingWriter:
    """The one writer of a ring."""

    def __init__(self, ring: memoryview) -> None:
        self._ring = ring

    def placed(self, tag: int, blocks: Sequence[int]) -> None:
        """Tell of a placement."""
        record = (tag, min(len(blocks), RECORD_LIMIT), *blocks[:RECORD_LIMIT])
        ring = self._ring
        written = ring[0]
        for cell in record:
            ring[1 + written % _ROOM] = cell
            written += 1
        ring[0] = written


class RingReader:
    """Reads along in some rings, from where they are now."""

    def __init__(self, rings: Iterable[memoryview]) -> None:
        self._rings = list(rings)
        self._read = [ring[0] for ring in self._rings]

    def news(self) -> Iterator[tuple[int, list[int]]]:
        """What was placed since the last call."""
        for number, ring in enumerate(self._rings):
            if ring[0] != self._read[number]:
                yield from self._read_ring(number, ring)

    def _read_ring(self, number: int, ring: memoryview) -> Iterator[tuple[int, list[int]]]:
        start, written = self._read[number], ring[0]
        self._read[number] = written
        if not 0 < written - start <= _ROOM:
            return  # lapped, or written anew
        first, last = 1 + start % _ROOM, 1 + written % _ROOM
        copied = ring[first:last].tolist() if first < last else [*ring[first:].tolist(), *ring[1:last].tolist()]
        if ring[0] - start > _ROOM - RECORD_LIMIT - _HEAD_CELLS:
            return  # the writer may have come by while we copied
        at = 0
        while at + _HEAD_CELLS <= len(copied):
            tag, count = copied[at : at + _HEAD_CELLS]
            at += _HEAD_CELLS
            yield tag, copied[at : at + count]
            at += count


class Sharing:
    """One worker's side.

    Args:
        counters: The shared map, which holds the rings as well.
    """

    def __init__(self, counters: SharedCounters) -> None:
        self._counters = counters
        blocks = [block for block in range(counters.shape.blocks) if block != counters.block]
        self._own = RingWriter(counters.ring(counters.block))
        self._others = RingReader(counters.ring(block) for block in (*blocks, counters.shape.peers_ring))

    def add(self, slot: int, work_bytes: int, reading_bytes: int) -> None:
        """More (or less) of a slot's prompts is placed and not read."""
        self._counters.add(slot, WORK_BYTES, work_bytes)
        self._counters.add(slot, READING_BYTES, reading_bytes)

    def read_at(self, slot: int, now: float) -> None:
        """A slot read a prompt of ours."""
        self._counters.put(slot, READ_AT_US, int(now * 1e6))

    def head_is(self, slot: int, at: float, work_bytes: int) -> None:
        """The earliest of our prompts that a slot has not read."""
        self._counters.put(slot, HEAD_BYTES, work_bytes)
        self._counters.put(slot, HEAD_AT_US, int(at * 1e6))

    def head(self, slot: int) -> tuple[float, int]:
        """The earliest of the others' prompts that a slot has not read, and its uncached bytes."""
        at_us, work_bytes = self._counters.head_elsewhere(slot)
        return (at_us / 1e6, work_bytes) if at_us else (inf, 0)

    def requests(self, slot: int) -> int:
        """Requests that the others have at a slot."""
        return self._counters.elsewhere(slot, IN_FLIGHT)

    def work_bytes(self, slot: int) -> int:
        """Uncached bytes that the others placed at a slot and that are not read."""
        return self._counters.elsewhere(slot, WORK_BYTES)

    def reading_bytes(self, slot: int) -> int:
        """Bytes that the others placed at a slot and that are not read."""
        return self._counters.elsewhere(slot, READING_BYTES)

    def last_read_s(self, slot: int) -> float:
        """When a slot last read a prompt of the others."""
        return self._counters.latest_elsewhere(slot, READ_AT_US) / 1e6

    def placed(self, tag: int, blocks: Sequence[int]) -> None:
        """Tell the others of a placement."""
        self._own.placed(tag, blocks)

    def news(self) -> Iterator[tuple[int, list[int]]]:
        """What the others have placed since the last call."""
        return self._others.news()
