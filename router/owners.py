"""Which replica made which response of `/v1/responses`, for all workers of a router, who read and write one shared map.

An entry is two cells: the hash of the response's id xor the replica's tag, and the tag. Nobody locks: of an entry that was met
half written the two do not fit together, and it counts as none (Hyatt and Mann, A lock-less transposition table, 2002). A
bucket holds four entries, the latest first; the oldest falls out. What is not found here the replicas are asked for
(`proxy/owner_search.py`), so that nothing is lost with an entry, a worker, or the router.
"""

import re
from collections.abc import Collection
from typing import Final

import xxhash

from router.counters import OWNER_CELLS, SharedCounters

_ENTRY_CELLS, _BUCKET_CELLS = 2, 8
_BUCKETS = OWNER_CELLS // _BUCKET_CELLS
_LOOKED_AT_BYTES: Final = 4096
_RESPONSE_ID = re.compile(rb'"id"\s*:\s*"(resp_[A-Za-z0-9_=-]{1,250})"')
"""As it stands in an answer's beginning, or in a stream's first event. Inside of a text the quotes would be escaped."""


class Owners:
    """One process's view.

    Args:
        counters: The shared map, which has the cells.
    """

    def __init__(self, counters: SharedCounters) -> None:
        self._cells = counters.owner_cells()

    def learn(self, answer: bytes, tag: int, living: Collection[int]) -> None:
        """Note that the replica with `tag` made the response that `answer` begins with, if it tells its id there."""
        found = _RESPONSE_ID.search(answer, 0, _LOOKED_AT_BYTES)
        if found is not None:
            self.note(found[1].decode(), tag, living)

    def note(self, response: str, tag: int, living: Collection[int]) -> None:
        """A replica made, or has, `response`. What is known of one of the `living` stays: an id is given once."""
        if self.find(response) in living:
            return
        key = _key(response)
        cells, start = self._cells, _bucket(key)
        for cell in range(start + _BUCKET_CELLS - 1, start + _ENTRY_CELLS - 1, -1):
            cells[cell] = cells[cell - _ENTRY_CELLS]
        cells[start] = key ^ tag
        cells[start + 1] = tag

    def find(self, response: str) -> int:
        """The tag of the replica that made `response`; 0 when it is not known."""
        key = _key(response)
        cells, start = self._cells, _bucket(key)
        for cell in range(start, start + _BUCKET_CELLS, _ENTRY_CELLS):
            tag = cells[cell + 1]
            if tag and cells[cell] ^ tag == key:
                return tag
        return 0


def _key(response: str) -> int:
    return xxhash.xxh3_64_intdigest(response.encode())


def _bucket(key: int) -> int:
    return key % _BUCKETS * _BUCKET_CELLS
