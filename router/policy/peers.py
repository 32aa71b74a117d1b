"""PURE. What routers of the same replicas tell each other of their placements: what is told, how much, and what is made of it.

A share has the loads that changed and the blocks that were placed since the last one. A replica stands in it by its tag, which
all routers make alike of its id; blocks are hashes, which all make alike of a prompt. What is told of one replica is bounded to
`BYTES_S`, loads first; what does not fit is left out. A share that is lost, or left out, is a worse guess and nothing else:
once a second all loads are told, and a router that is silent for `STALE_S` counts for nothing.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from sys import byteorder
from typing import Annotated, Final

import msgspec

BYTES_S: Final = 900.0
"""Of one replica, by one router, to each other one; with what goes around it, it is below 1,000. Chosen: prompts of 12,000 tokens
that come three a second take 140."""
_BURST_S: Final = 4.0
"""As much may be told at once as in so many seconds."""
TELL_S: Final = 0.05
"""Between two shares. Chosen: `bench/replay` with eight routers is 7 % above one with it, and 18 % with 0.25 s (docs/routing.md)."""
_ALL_EVERY: Final = 20
_BEAT_EVERY: Final = 5
"""Shares: in each such one all loads; each such one is told though there is nothing in it."""
STALE_S: Final = 1.0
"""Chosen: four beats."""
SHARE_LIMIT_BYTES: Final = 1 << 20
"""The largest share that is taken, enough for 4,000 replicas that all have much to tell."""
_LOAD_BYTES: Final = 36
_PLACED_BYTES: Final = 15
"""What they take at most, without the hashes."""
_HASH_BYTES: Final = 8
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
_Tag = Annotated[int, msgspec.Meta(ge=0)]


class Load(msgspec.Struct, frozen=True, array_like=True):
    """What a router has at one replica: requests, unread bytes (uncached ones, all), and its earliest unread prompt.

    Times are ages in ms: how long ago the replica last read a prompt of ours, and how long ago the earliest unread one was
    placed; None where there is none.
    """

    requests: _Count = 0
    work_bytes: _Count = 0
    reading_bytes: _Count = 0
    read_ms: _Count | None = None
    head_ms: _Count | None = None
    head_bytes: _Count = 0

    def same_as(self, other: "Load") -> bool:
        """Whether only time went by."""
        return (self.requests, self.work_bytes, self.reading_bytes, self.head_bytes) == (
            other.requests,
            other.work_bytes,
            other.reading_bytes,
            other.head_bytes,
        )


class Share(msgspec.Struct, frozen=True, array_like=True):
    """One word of a router; `all` says that it has nothing where no load is told."""

    router: Annotated[str, msgspec.Meta(max_length=64)]
    all: bool
    loads: dict[_Tag, Load]
    placed: list[tuple[_Tag, bytes]]


class BadShare(ValueError):
    """What came is no share."""


NOTHING: Final = Load()
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Share).decode


class Teller:
    """What one router tells.

    Args:
        router: Which it is, for itself to know its own words; different in each life.
    """

    def __init__(self, router: str) -> None:
        self.router = router
        self._told: dict[int, Load] = {}
        self._left: dict[int, float] = {}
        """Bytes that may be told of each replica now."""
        self._at = 0.0
        self._count = 0

    def share(self, loads: Mapping[int, Load], placed: Iterable[tuple[int, Sequence[int]]], now: float) -> bytes | None:
        """The next share, one every `TELL_S`; None where there is nothing to tell.

        Args:
            loads: What this router has, by tag, of all replicas.
            placed: What was placed since the last time: tag and blocks.
            now: Seconds, monotonic.
        """
        more, self._at = (now - self._at) * BYTES_S, now
        most = BYTES_S * _BURST_S
        self._left = {tag: min(most, self._left.get(tag, most) + more) for tag in loads}
        everything = not self._count % _ALL_EVERY
        self._told = {tag: load for tag, load in self._told.items() if tag in loads}
        told = {tag: load for tag, load in loads.items() if self._is_told(tag, load, everything=everything)}
        self._told.update(told)
        blocks = [(tag, cut) for tag, hashes in placed if (cut := self._cut(tag, hashes))]
        beat = not self._count % _BEAT_EVERY
        self._count += 1
        return _encode(Share(self.router, everything, told, blocks)) if told or blocks or beat else None

    def _is_told(self, tag: int, load: Load, *, everything: bool) -> bool:
        if load.same_as(NOTHING if everything else self._told.get(tag, NOTHING)):
            if everything:
                self._told[tag] = load
            return False
        if not everything and self._left[tag] < _LOAD_BYTES:
            return False
        self._left[tag] -= _LOAD_BYTES
        return True

    def _cut(self, tag: int, hashes: Sequence[int]) -> bytes:
        """As many of a prompt's first blocks as may be told."""
        room = int(self._left.get(tag, 0.0) - _PLACED_BYTES) // _HASH_BYTES
        if room <= 0:
            return b""
        cut = array("Q", hashes[:room])
        self._left[tag] -= _PLACED_BYTES + _HASH_BYTES * len(cut)
        return _little(cut).tobytes()


class Heard:
    """What the other routers told last."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._loads: dict[str, dict[int, tuple[Load, float]]] = {}
        """By whom it came from: the load of each tag, and when it was told."""

    def take(self, peer: str, payload: bytes, now: float) -> tuple[str, list[tuple[int, Sequence[int]]]]:
        """Take a share that came from `peer`; returns whose it is, and what was placed.

        Raises:
            BadShare: It is none; what was known before stays.
        """
        try:
            share = _decode(payload)
            placed: list[tuple[int, Sequence[int]]] = [
                (tag, _little(array("Q", hashes))) for tag, hashes in share.placed
            ]
        except (msgspec.MsgspecError, ValueError) as error:
            raise BadShare(str(error)) from error
        loads = {} if share.all else self._loads.get(peer, {})
        loads.update((tag, (load, now)) for tag, load in share.loads.items())
        self._loads[peer] = loads
        self._at[peer] = now
        return share.router, placed

    def forget(self, peer: str) -> bool:
        """It is gone, or was ourselves; returns whether anything had been heard of it."""
        self._loads.pop(peer, None)
        return self._at.pop(peer, None) is not None

    def of(self, tag: int, now: float) -> Iterator[tuple[Load, float]]:
        """What others have at a replica, and how long ago they said so, in seconds."""
        for peer, loads in self._loads.items():
            if tag in loads and now - self._at[peer] <= STALE_S:
                load, at = loads[tag]
                yield load, now - at


def merged(loads: Iterable[tuple[Load, float]], now: float) -> tuple[int, int, int, float, float, int]:
    """All of `Heard.of` together.

    Returns:
        Requests, uncached and all unread bytes; as times on our clock, 0 for never, when the replica last read a prompt and
        when the earliest unread one was placed; and the uncached bytes of that one.
    """
    requests = work = reading = head_bytes = 0
    read_at = head_at = 0.0
    for load, age_s in loads:
        requests += load.requests
        work += load.work_bytes
        reading += load.reading_bytes
        if load.read_ms is not None:
            read_at = max(read_at, now - age_s - load.read_ms / 1000)
        if load.head_ms is not None:
            at = now - age_s - load.head_ms / 1000
            if not head_at or at < head_at:
                head_at, head_bytes = at, load.head_bytes
    return requests, work, reading, max(read_at, 0.0), max(head_at, 0.0), head_bytes


def _little(cells: "array[int]") -> "array[int]":
    """Between this machine's order of bytes and the wire's."""
    if byteorder != "little":
        cells.byteswap()
    return cells
