"""Counters shared by all processes of a router: one memory map, a row per endpoint, a block per process in each row.

A worker has two blocks, for itself and its successor: while one drains, the other serves. So every cell has one writer,
the process that owns its block (the ejection cells of a row are the exception: any worker may write them, and the last one
wins). There are no locks, the counters survive a worker's death, and whoever reads sees the whole router. Reading a cell while it is written is safe: an aligned 8-byte store is one instruction.
"""

import mmap
import os
from bisect import bisect_left
from dataclasses import dataclass
from enum import IntEnum

from router.policy.usage import Usage

IN_FLIGHT, REQUESTS, ERRORS, RETRIES, EJECTIONS, BYTES_IN, BYTES_OUT = range(7)
WORK_BYTES, READING_BYTES, READ_AT_US, STUCK, HEARD_AT_US = range(7, 12)
"""`STUCK`: requests that wait at a replica which stands still (`silence.py`); `HEARD_AT_US`: when its latest byte came."""
RESCUES, RESCUES_FAILED, HAND_OVERS, HEDGES, HEDGES_WON = range(12, 17)
"""Streams of a replica that went on elsewhere, or could not, or were moved; second copies sent to it, and how many were first."""
PROMPT_TOKENS, CACHED_TOKENS, WRITTEN_TOKENS, REASONING_TOKENS, ESTIMATED_TOKENS = range(17, 22)
"""By the usage that answers told. `WRITTEN_TOKENS` grows while streams flow, a token for each piece, and is put right by their
usage at their end; `ESTIMATED_TOKENS` are those of it that no usage put right."""
GAUGES = (IN_FLIGHT, WORK_BYTES, READING_BYTES, STUCK)
"""What goes up and down: it stays when a row gets a new endpoint, and goes when its worker does."""


class AttemptOutcome(IntEnum):
    """How an attempt ended; the metric's label is the name in lower case."""

    OK = 0
    CLIENT_ERROR = 1
    SERVER_ERROR = 2
    BUSY = 3
    """429 or 503 from the replica."""
    CLIENT_GONE = 4
    CONNECT_FAILED = 5
    DIED = 6
    TRUNCATED = 7
    MALFORMED = 8
    TIMED_OUT = 9
    MOVED = 10
    """It went on at another replica, or another's copy was first."""


OUTCOMES = 22
"""First cell of the outcome counters."""
REASONS = ("stop", "length", "tool_calls", "other")
FINISHED = OUTCOMES + len(AttemptOutcome)
"""First cell of the counters of answers by why they ended."""
_HISTOGRAMS = FINISHED + len(REASONS)
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the histograms' buckets; one more for what is above."""
_BUCKETS = len(BOUNDS_S) + 1
_HISTOGRAM_CELLS = _BUCKETS + 1
FIRST_BYTE, GAP, DURATION, QUEUE_WAIT = (_HISTOGRAMS + number * _HISTOGRAM_CELLS for number in range(4))
"""First cell of each histogram: its buckets, then its sum in microseconds."""
FIELDS = _HISTOGRAMS + 4 * _HISTOGRAM_CELLS
_REASON_CELLS = {
    "stop": 0,
    "end_turn": 0,
    "stop_sequence": 0,
    "length": 1,
    "max_tokens": 1,
    "tool_calls": 2,
    "tool_use": 2,
}
RING_CELLS = 1 << 17
"""Of each worker's ring of placements (`sharing.py`): 1 MiB."""
OWNER_CELLS = 1 << 18
"""Of the map of stored responses (`owners.py`): 131,072 of them in 2 MiB, of which nothing is used before the first."""
BLOCKS_EACH = 2
"""Of one worker: its own, and its successor's."""
_EJECTED_UNTIL_MS, _EJECTED_WHY = range(2)
_ROW_HEAD = 2
"""Cells at the front of a row that belong to no worker."""


@dataclass(frozen=True)
class Shape:
    """How large a counters is: rows for endpoints, in each of them blocks for processes."""

    slots: int
    blocks: int

    @property
    def row_cells(self) -> int:
        """Cells of one row."""
        return _ROW_HEAD + FIELDS * self.blocks

    @property
    def rings_at(self) -> int:
        """The first cell after the rows (one for each slot, and one for what concerns no replica)."""
        return (self.slots + 1) * self.row_cells

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole map: all rows, a ring per block if there are several, and the stored responses."""
        return (self.owners_at + OWNER_CELLS) * 8

    @property
    def owners_at(self) -> int:
        """The first cell after the rings."""
        return self.rings_at + (RING_CELLS * self.blocks if self.blocks > 1 else 0)


class Gaps:
    """What one worker saw between the pieces of one endpoint's streams, until `SharedCounters.flush` adds it to the map.

    Every piece of every stream comes by here, and a cell of the map costs ten times an element of a list. `tokens` were
    written; below zero where more pieces were counted than the answers had tokens, until others make up for it: a counter
    never falls.
    """

    def __init__(self) -> None:
        self._bounds = list(BOUNDS_S)
        self.counts = [0] * _BUCKETS
        self.sum_s = 0.0
        self.tokens = 0

    def observe(self, seconds: float) -> None:
        """Count one gap, and the piece after it as a token."""
        self.tokens += 1
        bucket = 0
        for bound in self._bounds:
            if seconds <= bound:
                break
            bucket += 1
        self.counts[bucket] += 1
        self.sum_s += seconds


class SharedCounters:
    """A process's view of the shared map.

    Args:
        descriptor: From `create`, inherited by workers.
        shape: The same in every process.
        block: The one that `add` writes.
    """

    def __init__(self, descriptor: int, shape: Shape, block: int = 0) -> None:
        self.shape = shape
        self.block = block
        self._map = mmap.mmap(descriptor, shape.size_bytes)
        self._cells = memoryview(self._map).cast("q")
        self._offset = _ROW_HEAD + FIELDS * block
        self._row = shape.row_cells
        self._gaps: dict[int, Gaps] = {}

    @staticmethod
    def create(shape: Shape) -> int:
        """A new zeroed map; returns its descriptor, which is not inherited unless passed on."""
        descriptor = os.memfd_create("svc-router-counters", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, shape.size_bytes)
        return descriptor

    def add(self, slot: int, field: int, amount: int = 1) -> None:
        """Add to a cell of this worker."""
        self._cells[slot * self._row + self._offset + field] += amount

    def put(self, slot: int, field: int, value: int) -> None:
        """Set a cell of this worker."""
        self._cells[slot * self._row + self._offset + field] = value

    def elsewhere(self, slot: int, field: int) -> int:
        """A field of a slot, over all workers but this one."""
        total = 0
        cell = slot * self._row + _ROW_HEAD + field
        for block in range(self.shape.blocks):
            if block != self.block:
                total += self._cells[cell + FIELDS * block]
        return total

    def latest_elsewhere(self, slot: int, field: int) -> int:
        """The greatest of a field of a slot, over all workers but this one."""
        latest = 0
        cell = slot * self._row + _ROW_HEAD + field
        for block in range(self.shape.blocks):
            if block != self.block:
                latest = max(latest, self._cells[cell + FIELDS * block])
        return latest

    def ring(self, block: int) -> memoryview:
        """A block's ring, as unsigned cells."""
        start = (self.shape.rings_at + RING_CELLS * block) * 8
        return memoryview(self._map)[start : start + RING_CELLS * 8].cast("Q")

    def owner_cells(self) -> memoryview:
        """The map of stored responses, as unsigned cells."""
        start = self.shape.owners_at * 8
        return memoryview(self._map)[start : start + OWNER_CELLS * 8].cast("Q")

    def observe(self, slot: int, histogram: int, seconds: float) -> None:
        """Count one duration in a histogram of this worker."""
        start = slot * self._row + self._offset + histogram
        self._cells[start + bisect_left(BOUNDS_S, seconds)] += 1
        self._cells[start + _BUCKETS] += int(seconds * 1e6)

    def gaps(self, slot: int) -> Gaps:
        """Where gaps between the pieces of a slot's streams are counted, until they are flushed."""
        gaps = self._gaps.get(slot)
        if gaps is None:
            gaps = self._gaps[slot] = Gaps()
        return gaps

    def flush(self) -> None:
        """Add the gaps counted since the last time to the map."""
        for slot, gaps in self._gaps.items():
            if gaps.tokens > 0:
                self.add(slot, WRITTEN_TOKENS, gaps.tokens)
                gaps.tokens = 0
            if gaps.sum_s:
                start = slot * self._row + self._offset + GAP
                for bucket, count in enumerate(gaps.counts):
                    if count:
                        self._cells[start + bucket] += count
                        gaps.counts[bucket] = 0
                self._cells[start + _BUCKETS] += int(gaps.sum_s * 1e6)
                gaps.sum_s = 0.0

    def settle(
        self, slot: int, outcome: AttemptOutcome, duration_s: float, bytes_in: int, bytes_out: int, *, error: bool
    ) -> None:
        """Count one attempt that is over; it is no longer in flight."""
        cells = self._cells
        start = slot * self._row + self._offset
        cells[start] -= 1  # IN_FLIGHT
        cells[start + REQUESTS] += 1
        cells[start + BYTES_IN] += bytes_in
        cells[start + BYTES_OUT] += bytes_out
        cells[start + OUTCOMES + outcome] += 1
        start_of_duration = start + DURATION
        cells[start_of_duration + bisect_left(BOUNDS_S, duration_s)] += 1
        cells[start_of_duration + _BUCKETS] += int(duration_s * 1e6)
        if error:
            cells[start + ERRORS] += 1

    def settle_tokens(self, slot: int, usage: Usage | None, reason: str | None, pieces: int) -> None:
        """Count an answer's tokens; `pieces` of it were counted as tokens while they passed."""
        if reason is not None:
            self.add(slot, FINISHED + _REASON_CELLS.get(reason, len(REASONS) - 1))
        prompt, cached, written, reasoning = (None, None, None, None) if usage is None else usage
        if written is not None:
            self.gaps(slot).tokens += written - pieces
        elif pieces:
            self.add(slot, ESTIMATED_TOKENS, pieces)
        if prompt:
            self.add(slot, PROMPT_TOKENS, prompt)
        if cached:
            self.add(slot, CACHED_TOKENS, cached)
        if reasoning:
            self.add(slot, REASONING_TOKENS, reasoning)

    def total(self, slot: int, field: int) -> int:
        """A field of a slot, over all workers."""
        start = slot * self._row + _ROW_HEAD + field
        return sum(self._cells[start : start + FIELDS * (self.shape.blocks - 1) + 1 : FIELDS].tolist())

    def row(self, slot: int) -> list[int]:
        """All fields of a slot, over all workers."""
        start = slot * self._row + _ROW_HEAD
        blocks = [
            self._cells[begin : begin + FIELDS].tolist()
            for begin in range(start, start + FIELDS * self.shape.blocks, FIELDS)
        ]
        return blocks[0] if len(blocks) == 1 else [sum(column) for column in zip(*blocks, strict=True)]

    def histogram(self, slot: int, histogram: int) -> tuple[list[int], float]:
        """Counts per bucket (not cumulative) and the sum in seconds, over all workers."""
        counts = [self.total(slot, histogram + bucket) for bucket in range(_BUCKETS)]
        return counts, self.total(slot, histogram + _BUCKETS) / 1e6

    def clear_in_flight(self, block: int) -> None:
        """A process is gone, and what it had in flight with it."""
        for slot in range(self.shape.slots + 1):
            for gauge in GAUGES:
                self._cells[slot * self._row + _ROW_HEAD + FIELDS * block + gauge] = 0

    def eject(self, slot: int, until_s: float, why: int) -> None:
        """Tell all workers that a slot is set aside until a moment of the system's monotonic clock, and why."""
        self._cells[slot * self._row + _EJECTED_WHY] = why
        self._cells[slot * self._row + _EJECTED_UNTIL_MS] = int(until_s * 1000)

    def ejected_until_s(self, slot: int) -> float:
        """Until when a slot is set aside; 0 when it never was."""
        return self._cells[slot * self._row + _EJECTED_UNTIL_MS] / 1000

    def ejected_why(self, slot: int) -> int:
        """Why a slot is, or was, set aside."""
        return self._cells[slot * self._row + _EJECTED_WHY]

    def reset(self, slot: int) -> None:
        """Clear a row that gets a new endpoint, all but what is still in flight from the old one."""
        start = slot * self._row
        kept = {start + _ROW_HEAD + FIELDS * block + gauge for block in range(self.shape.blocks) for gauge in GAUGES}
        for cell in range(start, start + self._row):
            if cell not in kept:
                self._cells[cell] = 0

    def close(self) -> None:
        """Flush, and let go of the map."""
        self.flush()
        self._cells.release()
        self._map.close()
