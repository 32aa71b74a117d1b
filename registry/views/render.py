"""How records look on the wire (docs/contract.md 1): as JSON bytes, each encoded once per change.

Only `last_heartbeat` moves between changes, so it stands last and is written into the cached bytes at the end.
"""

import asyncio
import operator
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import UNSET

from common.clock import Clock, iso
from common.paced import paced
from common.wire.record import ServiceRecord, plain_weight
from registry.core.catalogue import Catalogue, Entry
from registry.core.expiry import ttl_s
from registry.core.model import Instance
from registry.core.report import report_text

_encode = msgspec.json.Encoder().encode
encode_json = _encode
STAMP_LASTS_S = 0.01
ROWS_A_PIECE = 64


def service_record(instance: Instance) -> ServiceRecord:
    """A record as it is shown, but for `last_heartbeat`."""
    registration = instance.registration
    metadata = registration.metadata
    if instance.report is not None:
        metadata = {**metadata, "replica": msgspec.Raw(report_text(instance.report))}
    return ServiceRecord(
        name=registration.name,
        host=registration.host,
        port=registration.port,
        hostname=registration.hostname,
        url=registration.url,
        status=instance.status,
        timestamp=registration.timestamp,
        health_status=instance.health,
        metadata=metadata,
        is_healthy=instance.is_healthy,
        weight=plain_weight(registration.weight) if registration.weight is not UNSET else None,
        instance_id=registration.instance_id or None,
        incarnation=registration.incarnation,
        generation=instance.generation,
        ttl_s=ttl_s(instance),
        draining=instance.is_draining,
        hand_over=instance.hand_over or None,
        stale=instance.stale,
        suspect=instance.suspect,
    )


def _head(instance: Instance) -> bytes:
    """A record up to `last_heartbeat`'s value; what an ancestor's client reads is never null (docs/contract.md 7)."""
    members = msgspec.structs.asdict(service_record(instance))
    del members["last_heartbeat"]
    shown = {name: member for name, member in members.items() if member is not None}
    return _encode(shown)[:-1] + b',"last_heartbeat":'


async def json_array(rows: Sequence[bytes]) -> list[bytes]:
    """Rows as a JSON array, in pieces: ten thousand records in one are 11 MB to be copied at every step."""
    starts = paced(range(0, len(rows), ROWS_A_PIECE))
    pieces = [(b"," if start else b"") + b",".join(rows[start : start + ROWS_A_PIECE]) async for start in starts]
    return [b"[", *pieces, b"]"]


class Table(NamedTuple):
    """All records as they were at `state` or, some of them, a moment later.

    Args:
        state: Revision, heartbeats counted, and the second where leases are renewed elsewhere too; they only grow.
        services: A JSON array, in pieces.
        total: How many.
    """

    state: tuple[int, int, int]
    services: list[bytes]
    total: int

    @property
    def revision(self) -> int:
        """Nothing up to this revision is missing."""
        return self.state[0]


class Renderer:
    """Encodes the records of one catalogue, and remembers the encodings.

    Args:
        catalogue: What to show.
        clock: For `last_heartbeat` and `timestamp`; monotonic instants are shown as wall time.
    """

    def __init__(self, catalogue: Catalogue, clock: Clock) -> None:
        self._catalogue = catalogue
        self._clock = clock
        self._cache: dict[str, tuple[Instance, bytes]] = {}
        self._stamp = ""
        self._stamped_at: float | None = None
        self._table: Table | None = None
        self._making = asyncio.Lock()

    def timestamp(self) -> str:
        """Now, for people; made anew a hundred times a second at most."""
        now = self._clock.monotonic()
        if self._stamped_at is None or not 0.0 <= now - self._stamped_at < STAMP_LASTS_S:
            self._stamp = iso(self._clock.utcnow())
            self._stamped_at = now
        return self._stamp

    def last_heartbeat(self, entry: Entry) -> float:
        """Epoch seconds of the last renewal."""
        return round(self._wall_offset() + self._renewed_at(entry), 3)

    def service(self, entry: Entry) -> bytes:
        """One service as a JSON object."""
        return self._finish(entry, self._wall_offset())

    async def services(self, entries: Sequence[Entry]) -> list[bytes]:
        """Services as a JSON array, in pieces."""
        offset = self._wall_offset()
        return await json_array([self._finish(entry, offset) async for entry in paced(entries)])

    async def table(self) -> Table:
        """All services, no older than this call; made once for all who ask at a time."""
        asked = self._state()
        async with self._making:
            if self._table is None or any(map(operator.lt, self._table.state, asked)):
                state, total = self._state(), len(self._catalogue)
                self._table = Table(state, await self.services(list(self._catalogue)), total)
            return self._table

    def _state(self) -> tuple[int, int, int]:
        second = int(self._clock.monotonic()) if self._catalogue.shared else 0
        return self._catalogue.revision, self._catalogue.renewals, second

    def forget(self, name: str) -> None:
        """Drop the cached encoding of a record that is gone."""
        self._cache.pop(name, None)

    def _wall_offset(self) -> float:
        return self._clock.utcnow().timestamp() - self._clock.monotonic()

    def _finish(self, entry: Entry, offset: float) -> bytes:
        instance = entry.instance
        cached = self._cache.get(instance.name)
        if cached is None or cached[0] is not instance:
            cached = (instance, _head(instance))
            self._cache[instance.name] = cached
        return b"%b%.3f}" % (cached[1], offset + self._renewed_at(entry))

    def _renewed_at(self, entry: Entry) -> float:
        """When a lease was last renewed; of one that a shared store holds it is known that it has not ended."""
        if not entry.held:
            return entry.renewed_at
        return max(entry.renewed_at, self._clock.monotonic() - ttl_s(entry.instance))
