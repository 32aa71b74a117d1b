"""Where records outlive a registry. `Store` is the contract; its implementations are one module each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from registry.model import Change, Instance


class StoreError(Exception):
    """Base of what can go wrong; in every case nothing was written."""


class StoreUnavailable(StoreError):
    """The store is down or does not answer in time; the same write may succeed later."""


class StoreFull(StoreError):
    """The store has no room (disk full, quota reached); reading and renewing go on."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that a store remembers. No later record of a new name may get a generation up to `generation_floor`."""

    instances: tuple[Instance, ...]
    generation_floor: int


class Store(Protocol):
    """Remembers records, never heartbeats.

    One writer calls a store, one call at a time, `open` first and `close` last.

    - `open` returns what was last written, whole. A damaged store is set aside and an empty one begun: records are
      soft state and come back with the next heartbeats; refusing to start would turn a lost file into an outage.
    - `write` is atomic: all of its changes are remembered, or it raises and none is. When it returns, a process that
      is killed at once and opens the store again finds them. Volatile changes never reach it.
    - A `Put` replaces whatever stood under its name; a `Removed` of a name that is not there is fine.
    - Health, staleness and lease times are not remembered.
    """

    async def open(self) -> Loaded:
        """Make ready, and return what is remembered.

        Raises:
            ConfigurationError: The place cannot be used at all (no permission, another registry has it).
            StoreUnavailable: It may be usable later.
        """
        ...

    async def write(self, changes: Sequence[Change]) -> None:
        """Remember `changes`, all or none.

        Raises:
            StoreUnavailable: Try later.
            StoreFull: There is no room.
        """
        ...

    async def close(self) -> None:
        """Let go of files and sockets. Idempotent."""
        ...
