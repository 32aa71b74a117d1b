"""Counters shared by all processes of a router: one memory map, a row per endpoint, a block per worker in each row.

Every cell has one writer: the worker that owns its block (the ejection cell of a row is the exception: any worker may
write it, and the last one wins). So there are no locks, the counters survive a worker's death, and `least loaded` sees
the whole router. Reading a cell while it is written is safe: an aligned 8-byte store is one instruction.
"""

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

IN_FLIGHT, REQUESTS, ERRORS, LATENCY_US, RETRIES = range(5)
FIELDS = 8
"""Cells of a worker's block, some spare."""
_EJECTED_UNTIL_MS = 0
_ROW_HEAD = 8
"""Cells at the front of a row that belong to no worker."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a board is: rows for endpoints, blocks for workers."""

    slots: int
    workers: int

    @property
    def row_cells(self) -> int:
        """Cells of one row."""
        return _ROW_HEAD + FIELDS * self.workers

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole map: all rows, and one more for the control plane's own endpoint."""
        return (self.slots + 1) * self.row_cells * 8


class Board:
    """A process's view of the shared map.

    Args:
        descriptor: From `create`, inherited by workers.
        shape: The same in every process.
        worker: Whose block `add` writes.
    """

    def __init__(self, descriptor: int, shape: Shape, worker: int = 0) -> None:
        self.shape = shape
        self._map = mmap.mmap(descriptor, shape.size_bytes)
        self._cells = memoryview(self._map).cast("q")
        self._offset = _ROW_HEAD + FIELDS * worker
        self._row = shape.row_cells

    @staticmethod
    def create(shape: Shape) -> int:
        """A new zeroed map; returns its descriptor, which is not inherited unless passed on."""
        descriptor = os.memfd_create("svc-router-board", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, shape.size_bytes)
        return descriptor

    def add(self, slot: int, field: int, amount: int = 1) -> None:
        """Add to a cell of this worker."""
        self._cells[slot * self._row + self._offset + field] += amount

    def total(self, slot: int, field: int) -> int:
        """A field of a slot, over all workers."""
        return sum(self._cells[cell] for cell in self._column(slot, field))

    def clear_worker(self, worker: int, field: int) -> None:
        """Set a field of a worker that is gone to 0 in every row (its requests in flight died with it)."""
        for slot in range(self.shape.slots + 1):
            self._cells[slot * self._row + _ROW_HEAD + FIELDS * worker + field] = 0

    def eject(self, slot: int, until_s: float) -> None:
        """Tell all workers that a slot is set aside until a moment of the system's monotonic clock."""
        self._cells[slot * self._row + _EJECTED_UNTIL_MS] = int(until_s * 1000)

    def ejected_until_s(self, slot: int) -> float:
        """Until when a slot is set aside; 0 when it never was."""
        return self._cells[slot * self._row + _EJECTED_UNTIL_MS] / 1000

    def reset(self, slot: int) -> None:
        """Clear a row that gets a new endpoint; only the master calls it, for a slot long unused."""
        start = slot * self._row
        for cell in range(start, start + self._row):
            self._cells[cell] = 0

    def close(self) -> None:
        """Let go of the map."""
        self._cells.release()
        self._map.close()

    def _column(self, slot: int, field: int) -> Iterator[int]:
        start = slot * self._row + _ROW_HEAD + field
        return iter(range(start, start + FIELDS * self.shape.workers, FIELDS))
