"""The contract of what outlives a registry; its implementations are in `registry/store/`, one module each."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from registry.core.documents import Documents
from registry.core.model import Change, Instance


class StoreError(Exception):
    """Base of what can go wrong; in every case nothing was written."""


class StoreUnavailable(StoreError):
    """The store is down or does not answer in time; the same write may succeed later."""


class StoreFull(StoreError):
    """The store has no room (disk full, quota reached); reading and renewing go on."""


class StoreConflict(StoreError):
    """Another registry wrote this name first. Shared stores only."""

    def __init__(self, name: str, current: Instance | None) -> None:
        super().__init__(f"{name!r} was changed by another registry")
        self.name = name
        self.current = current
        """What it wrote; None when it deregistered the name."""


class DocumentConflict(StoreError):
    """The document has another version than the writer thinks: read again, then decide again."""


class FenceLost(StoreError):
    """Another registry leads now, or none: the leader that was may write nothing."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that a store remembers. No later record of a new name may get a generation up to `generation_floor`."""

    instances: tuple[Instance, ...]
    generation_floor: int


# What a shared store tells. `version` orders the events of one name.


@dataclass(frozen=True, slots=True)
class Written:
    """Another registry wrote a record. `lease` is the store's own affair."""

    instance: Instance
    version: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Vanished:
    """A record is gone: deregistered at another registry, or its lease ended."""

    name: str
    version: int
    deregistered: bool


@dataclass(frozen=True, slots=True)
class Away:
    """Contact with the store is lost."""

    reason: str


@dataclass(frozen=True, slots=True)
class Back:
    """Contact is there again; this is all the store has now, and which names were deregistered a short while ago."""

    instances: Mapping[str, Instance]
    deregistered: frozenset[str]
    version: int


Event = Written | Vanished | Away | Back


class Store(Protocol):
    """Remembers records, never heartbeats.

    One writer calls a store, one call at a time (but `renew` at any time), `open` first and `close` last.

    - `open` returns what was last written, whole. A damaged store is set aside and an empty one begun: records are
      soft state and come back with the next heartbeats; refusing to start would turn a lost file into an outage.
    - `write` is atomic: all of its changes are remembered, or it raises and none is. When it returns, a process that
      is killed at once and opens the store again finds them. Volatile changes never reach it. It returns the changes
      as remembered: a shared store may raise the generation of a name that is new.
    - A `Put` replaces whatever stood under its name; a `Removed` of a name that is not there is fine.
    - Health, staleness and lease times are not remembered.

    A `shared` store serves several registries, and therefore also

    - compares before it sets: a `write` about a name that another registry changed since this one last heard of it
      raises `StoreConflict` and changes nothing;
    - holds the leases: a record that is not renewed through any registry vanishes by itself;
    - tells through `events` what others did. Each event is for the writer to `accept` when it comes to it: False
      means that a write of its own has overtaken the event. `Away` and `Back` alternate, `Away` first.
    """

    shared: bool

    @property
    def documents(self) -> Documents:
        """What else is kept here, apart from records."""
        ...

    async def open(self) -> Loaded:
        """Make ready, and return what is remembered.

        Raises:
            ConfigurationError: The place cannot be used at all (no permission, another registry has it).
            StoreUnavailable: It may be usable later.
        """
        ...

    async def write(self, changes: Sequence[Change]) -> Sequence[Change]:
        """Remember `changes`, all or none; returns them as remembered.

        Raises:
            StoreUnavailable: Try later.
            StoreFull: There is no room.
            StoreConflict: Look again, then decide again.
        """
        ...

    def renew(self, name: str) -> bool:
        """Have the lease of `name` renewed soon, with all that beat about now; False when it is known that there is none.

        Nobody waits for it: of a lease that has ended meanwhile the events tell.
        """
        ...

    def accept(self, event: Event) -> bool:
        """Whether `event` is still news to the catalogue; False when a write of this registry is later."""
        ...

    async def look(self, name: str) -> Written | Vanished | None:
        """What the store has of `name` this moment; None when it is not shared.

        Raises:
            StoreUnavailable: It does not answer.
        """
        ...

    def events(self) -> AsyncGenerator[Event]:
        """What other registries did, for ever; nothing, when the store is not shared."""
        ...

    async def close(self) -> None:
        """Let go of files and sockets. Idempotent."""
        ...
