"""Counters shared by all processes of a router: one memory map, a row per endpoint, a block per process in each row.

A worker has two blocks, for itself and its successor: while one drains, the other serves. So every cell has one writer,
the process that owns its block (the ejection cells of a row are the exception: any worker may write them, and the last one
wins). There are no locks, the counters survive a worker's death, and whoever reads sees the whole router. Reading a cell while it
is written is safe: an aligned 8-byte store is one instruction. What nobody decides by is gathered in a `Tally` first and flushed
with each sweep, four times a second: so much is not counted of a worker that is killed.
"""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from router.policy.usage import Usage

# Which cells a row has. The numbers are written out: what is compiled then has them in place.

IN_FLIGHT: Final = 0
REQUESTS: Final = 1
ERRORS: Final = 2
RETRIES: Final = 3
EJECTIONS: Final = 4
BYTES_IN: Final = 5
BYTES_OUT: Final = 6
WORK_BYTES: Final = 7
READING_BYTES: Final = 8
READ_AT_US: Final = 9
STUCK: Final = 10
HEARD_AT_US: Final = 11
"""`STUCK`: requests that wait at a replica which stands still (`silence.py`); `HEARD_AT_US`: when its latest byte came."""
RESCUES: Final = 12
RESCUES_FAILED: Final = 13
HAND_OVERS: Final = 14
HEDGES: Final = 15
HEDGES_WON: Final = 16
"""Streams of a replica that went on elsewhere, or could not, or were moved; second copies sent to it, and how many were first."""
PROMPT_TOKENS: Final = 17
CACHED_TOKENS: Final = 18
WRITTEN_TOKENS: Final = 19
REASONING_TOKENS: Final = 20
ESTIMATED_TOKENS: Final = 21
"""By the usage that answers told. `WRITTEN_TOKENS` grows while streams flow, a token for each piece, and is put right by their
usage at their end; `ESTIMATED_TOKENS` are those of it that no usage put right."""
HEAD_AT_US: Final = 22
HEAD_BYTES: Final = 23
"""When the earliest prompt was placed that is not read yet, 0 where there is none; and its uncached bytes."""
GAUGES = (IN_FLIGHT, WORK_BYTES, READING_BYTES, STUCK, HEAD_AT_US, HEAD_BYTES)
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


OUTCOMES: Final = 24
"""First cell of the outcome counters."""
REASONS: Final = ("stop", "length", "tool_calls", "other")
FINISHED: Final = OUTCOMES + 11
"""First cell of the counters of answers by why they ended."""
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the histograms' buckets; one more for what is above."""
_BUCKETS: Final = 17
_HISTOGRAM_CELLS: Final = 18
FIRST_BYTE: Final = FINISHED + 4
GAP: Final = FIRST_BYTE + _HISTOGRAM_CELLS
DURATION: Final = GAP + _HISTOGRAM_CELLS
QUEUE_WAIT: Final = DURATION + _HISTOGRAM_CELLS
"""First cell of each histogram: its buckets, then its sum in microseconds."""
FIELDS: Final = QUEUE_WAIT + _HISTOGRAM_CELLS
_REASON_CELLS: Final = {
    b"stop": 0,
    b"end_turn": 0,
    b"stop_sequence": 0,
    b"length": 1,
    b"max_tokens": 1,
    b"tool_calls": 2,
    b"tool_use": 2,
}
_OTHER: Final = 3
RING_CELLS: Final = 1 << 17
"""Of each worker's ring of placements (`sharing.py`): 1 MiB."""
OWNER_CELLS: Final = 1 << 18
"""Of the map of stored responses (`owners.py`): 131,072 of them in 2 MiB, of which nothing is used before the first."""
BLOCKS_EACH: Final = 2
"""Of one worker: its own, and its successor's."""
_EJECTED_UNTIL_MS: Final = 0
_EJECTED_WHY: Final = 1
PEERS: Final = (IN_FLIGHT, WORK_BYTES, READING_BYTES, READ_AT_US, HEAD_AT_US, HEAD_BYTES)
"""Of these a row has a cell more each: what other routers have there (`peers.py`). The master writes it."""
_PEER_CELLS: Final = {field: number for number, field in enumerate(PEERS)}
_PEERS_AT: Final = 2
_ROW_HEAD: Final = 8
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
        """Bytes of the whole map: all rows, the rings, and the stored responses."""
        return (self.owners_at + OWNER_CELLS) * 8

    @property
    def owners_at(self) -> int:
        """The first cell after the rings."""
        return self.rings_at + RING_CELLS * (self.blocks + 1)

    @property
    def peers_ring(self) -> int:
        """The ring of what other routers placed; the others are the blocks'."""
        return self.blocks


class Tally:
    """What one worker counted of one endpoint, until `SharedCounters.flush` adds it to the map.

    Every request, and every piece of every stream, comes by here, and a cell of the map costs ten times an element of a list.
    """

    def __init__(self) -> None:
        self._bounds = list(BOUNDS_S)
        self.cells = [0] * FIELDS
        """To be added to the map's, as `gaps_s` and `written` are."""
        self.gaps_s = 0.0
        self.written = 0
        """Tokens, but for one of each gap; below zero where more pieces were counted than the answers had, until others make up for it: a counter never falls."""

    def add(self, field: int, amount: int = 1) -> None:
        """Count."""
        self.cells[field] += amount

    def observe(self, histogram: int, seconds: float) -> None:
        """Count one duration in a histogram."""
        self.cells[histogram + self._bucket(seconds)] += 1
        self.cells[histogram + _BUCKETS] += int(seconds * 1e6)

    def gap(self, seconds: float) -> None:
        """Count one gap between pieces of a stream; the piece after it counts as a token."""
        self.cells[GAP + self._bucket(seconds)] += 1
        self.gaps_s += seconds

    def settle(self, outcome: AttemptOutcome, duration_s: float, bytes_in: int, bytes_out: int, *, error: bool) -> None:
        """Count one attempt that is over."""
        cells = self.cells
        cells[REQUESTS] += 1
        cells[BYTES_IN] += bytes_in
        cells[BYTES_OUT] += bytes_out
        cells[OUTCOMES + outcome] += 1
        if error:
            cells[ERRORS] += 1
        self.observe(DURATION, duration_s)

    def answered(self, usage: Usage | None, reason: bytes, pieces: int) -> None:
        """Count an answer's tokens; `pieces` of it were counted as tokens while they passed."""
        cells = self.cells
        if reason:
            cells[FINISHED + _REASON_CELLS.get(reason, _OTHER)] += 1
        if usage is None or usage.written < 0:
            cells[ESTIMATED_TOKENS] += pieces
        else:
            self.written += usage.written - pieces
        if usage is not None:
            cells[PROMPT_TOKENS] += max(usage.prompt, 0)
            cells[CACHED_TOKENS] += max(usage.cached, 0)
            cells[REASONING_TOKENS] += max(usage.reasoning, 0)

    def _bucket(self, seconds: float) -> int:
        bucket = 0
        for bound in self._bounds:
            if seconds <= bound:
                break
            bucket += 1
        return bucket


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
        self._rows: dict[int, tuple[bytes, list[int]]] = {}
        self._offset = _ROW_HEAD + FIELDS * block
        self._row = shape.row_cells
        self._tallies: dict[int, Tally] = {}

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
        """A field of a slot, over all workers but this one, and other routers if it is one of `PEERS`."""
        total = self._cells[slot * self._row + _PEERS_AT + _PEER_CELLS[field]] if field in _PEER_CELLS else 0
        cell = slot * self._row + _ROW_HEAD + field
        for block in range(self.shape.blocks):
            if block != self.block:
                total += self._cells[cell + FIELDS * block]
        return total

    def put_peers(self, slot: int, values: Sequence[int]) -> None:
        """What other routers have at a slot now, in the order of `PEERS`."""
        start = slot * self._row + _PEERS_AT
        for number, value in enumerate(values):
            self._cells[start + number] = value

    def head_elsewhere(self, slot: int) -> tuple[int, int]:
        """The earliest unread prompt at a slot, of all but this worker: when it was placed (µs, 0: none), its uncached bytes."""
        start = slot * self._row
        at = self._cells[start + _PEERS_AT + _PEER_CELLS[HEAD_AT_US]]
        found = at, self._cells[start + _PEERS_AT + _PEER_CELLS[HEAD_BYTES]]
        return self._earliest(slot, self.block, found)

    def head(self, slot: int) -> tuple[int, int]:
        """The same of all workers, without other routers."""
        return self._earliest(slot, -1, (0, 0))

    def latest(self, slot: int, field: int) -> int:
        """The greatest of a field of a slot, over all workers."""
        start = slot * self._row + _ROW_HEAD + field
        return max(self._cells[start : start + FIELDS * (self.shape.blocks - 1) + 1 : FIELDS].tolist())

    def _earliest(self, slot: int, left_out: int, found: tuple[int, int]) -> tuple[int, int]:
        start = slot * self._row + _ROW_HEAD
        for block in range(self.shape.blocks):
            at = self._cells[start + HEAD_AT_US]
            if at and block != left_out and (not found[0] or at < found[0]):
                found = at, self._cells[start + HEAD_BYTES]
            start += FIELDS
        return found

    def latest_elsewhere(self, slot: int, field: int) -> int:
        """The greatest of a field of a slot, over all workers but this one, and other routers if it is one of `PEERS`."""
        latest = self._cells[slot * self._row + _PEERS_AT + _PEER_CELLS[field]] if field in _PEER_CELLS else 0
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

    def tally(self, slot: int) -> Tally:
        """Where what a slot's answers tell is counted, until it is flushed."""
        tally = self._tallies.get(slot)
        if tally is None:
            tally = self._tallies[slot] = Tally()
        return tally

    def flush(self) -> None:
        """Add what was counted since the last time to the map."""
        for slot, tally in self._tallies.items():
            counted = tally.cells
            tally.written += sum(counted[GAP : GAP + _BUCKETS])
            if tally.written > 0:
                counted[WRITTEN_TOKENS] += tally.written
                tally.written = 0
            if tally.gaps_s:
                counted[GAP + _BUCKETS] += int(tally.gaps_s * 1e6)
                tally.gaps_s = 0.0
            start = slot * self._row + self._offset
            for field, count in enumerate(counted):
                if count:
                    self._cells[start + field] += count
                    counted[field] = 0

    def total(self, slot: int, field: int) -> int:
        """A field of a slot, over all workers, as they flushed it."""
        start = slot * self._row + _ROW_HEAD + field
        return sum(self._cells[start : start + FIELDS * (self.shape.blocks - 1) + 1 : FIELDS].tolist())

    def row(self, slot: int) -> list[int]:
        """All fields of a slot, over all workers; the same object for as long as none changes."""
        start = slot * self._row + _ROW_HEAD
        raw = self._cells[start : start + FIELDS * self.shape.blocks].tobytes()
        last = self._rows.get(slot)
        if last is None or last[0] != raw:
            blocks = [
                self._cells[begin : begin + FIELDS].tolist()
                for begin in range(start, start + FIELDS * self.shape.blocks, FIELDS)
            ]
            last = raw, blocks[0] if len(blocks) == 1 else [sum(column) for column in zip(*blocks, strict=True)]
            self._rows[slot] = last
        return last[1]

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
