"""The registry's nouns: what is registered, what is asked, what changed, and why something is refused.

A registration without `instance_id` is a client's of the old kind; one without `ttl_s` asks for the old kind's lease.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from common.wire.record import Registration
from common.wire.words import HealthStatus, RecordStatus


@dataclass(slots=True)  # not frozen: it is made for every heartbeat, and that doubles its price
class Report:
    """A replica report as JSON text: its `lasting` members, and the `passing` ones that change with every heartbeat.

    What the registry itself asks of ten thousand reports stands beside the text: members of the same names, None where
    they are no string.
    """

    lasting: bytes
    passing: bytes = b"{}"
    replica_id: str | None = None
    status: str | None = None
    updated_at: str | None = None
    request_id: str | None = None


class Instance(msgspec.Struct, frozen=True):
    """One record. It never changes; a change makes a new one.

    `generation` counts the owners a name has had and never falls. `report` is the last replica report (docs/contract.md 4).
    `stale` means that the lease ended, `suspect` that the record is kept past its time because too many ended at once.
    """

    registration: Registration
    generation: int
    draining: bool = False
    health: HealthStatus = HealthStatus.UNKNOWN
    report: Report | None = None
    stale: bool = False
    suspect: bool = False
    hand_over: bool = False

    @property
    def name(self) -> str:
        """The name it is registered under."""
        return self.registration.name

    @property
    def status(self) -> str:
        """`draining` while it drains, else what its owner said last."""
        return RecordStatus.DRAINING if self.draining else self.registration.status

    @property
    def is_draining(self) -> bool:
        """Drained by an operator, or draining by its own word."""
        return self.status == RecordStatus.DRAINING

    @property
    def is_healthy(self) -> bool:
        """Running, with a lease that holds (docs/contract.md 1)."""
        return self.status == RecordStatus.RUNNING and not self.stale

    @property
    def kind(self) -> str | None:
        """`metadata.type`, or None."""
        kind = self.registration.metadata.get("type")
        return kind if isinstance(kind, str) else None


# Commands: what may be asked of the catalogue.


@dataclass(frozen=True, slots=True)
class Register:
    """Claim a name."""

    registration: Registration


@dataclass(slots=True)  # not frozen: it is made for every heartbeat, and that doubles its price
class Renew:
    """A heartbeat. Absent members say nothing."""

    name: str
    status: str | None = None
    instance_id: str | None = None
    incarnation: int | None = None
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """Change some fields; counts as a heartbeat. `fields` holds members of `Registration`, each replaced whole."""

    name: str
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Deregister:
    """Remove a record; with `instance_id`, only if that instance owns it."""

    name: str
    instance_id: str | None = None


@dataclass(frozen=True, slots=True)
class SetDraining:
    """Start (`on`) or end the draining of an instance; `hand_over`: routers move its streams to others."""

    name: str
    on: bool
    hand_over: bool = False


@dataclass(frozen=True, slots=True)
class SetHealth:
    """A prober's verdict on one incarnation; one that is gone is ignored."""

    name: str
    generation: int
    health: HealthStatus


@dataclass(frozen=True, slots=True)
class Sweep:
    """Time passed: let leases end."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Give a store again what it could not take when it changed."""

    name: str


# Commands that come from a shared store: what other registries did, and what its leases say.


@dataclass(frozen=True, slots=True)
class Learn:
    """Another registry wrote this record; the store holds its lease."""

    instance: Instance


@dataclass(frozen=True, slots=True)
class Forget:
    """Another registry was told to deregister this name."""

    name: str


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """The store let the lease of this name end."""

    name: str


StoreCommand = Rewrite | Learn | Forget | LeaseEnd
Command = Register | Renew | Update | Deregister | SetDraining | SetHealth | Sweep | StoreCommand


# Changes: what a command did.

Reason = Literal["deregistered", "expired", "replaced"]


@dataclass(slots=True)  # not frozen: it is made for every heartbeat, and that doubles its price
class Upsert:
    """A record is new or different.

    `durable` is False for what a store need not remember (health, load figures). `claims` is True when a client
    registered, which no other registry's memory of a deregistration may refuse.
    """

    instance: Instance
    durable: bool
    claims: bool = False

    @property
    def name(self) -> str:
        """Whose record."""
        return self.instance.name


@dataclass(frozen=True, slots=True)
class Removed:
    """A record is gone. `durable` is False when the store let go of it first."""

    instance: Instance
    reason: Reason
    durable: bool = True

    @property
    def name(self) -> str:
        """Whose record."""
        return self.instance.name


Change = Upsert | Removed


# Refusals.


class CommandRefused(Exception):
    """Base: the command changed nothing."""


class Unknown(CommandRefused):
    """There is no such record; register."""


class Conflict(CommandRefused):
    """The name belongs to somebody else, or to a later life of the caller."""


class Full(CommandRefused):
    """The catalogue holds as many records as it may."""
