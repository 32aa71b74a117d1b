"""The catalogue: every record, its lease and its revision, and what each command does to them. PURE.

A command is decided and committed in two steps, so that a store can be written between them and a failed write changes
nothing: `decide` looks and does not touch, `commit` cannot fail. `apply` is both, for those without a store. One writer
calls them; `now` is the monotonic clock. A revision is given to every change, and means nothing in another epoch.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import assert_never

from msgspec import UNSET, structs

from common.wire.record import Registration
from common.wire.words import HealthStatus
from registry.core import expiry
from registry.core.expiry import ExpiryRules, ttl_s
from registry.core.model import (
    Change,
    Command,
    Conflict,
    Deregister,
    Forget,
    Full,
    Instance,
    Learn,
    LeaseEnd,
    Register,
    Removed,
    Renew,
    Rewrite,
    SetDraining,
    SetHealth,
    StoreCommand,
    Sweep,
    Unknown,
    Update,
    Upsert,
)
from registry.core.ownership import TOMBSTONE_S, Claim, Tombstone, check_heartbeat, judge_registration
from registry.core.report import lasting, service_status


@dataclass(slots=True)
class Entry:
    """An instance, the instant (monotonic) its lease was last renewed, and the revision of its last change.

    `held` means that a shared store holds the lease: other registries may renew it, so its age here proves nothing.
    """

    instance: Instance
    renewed_at: float
    revision: int
    held: bool = False

    def beats(self, now: float) -> bool:
        """Whether it beats at this registry, and says how long it lasts without."""
        return now - self.renewed_at < (self.instance.registration.ttl_s or 0.0)


@dataclass(slots=True)  # not frozen: it is made for every heartbeat, and that doubles its price
class Decision:
    """What a command will do: the changes, the record that it leaves, and whether that record's lease is renewed.

    `held` is set by what a shared store says of the lease; `aged` says that no heartbeat of this owner came to this registry:
    by its own clock the lease is over, and only the store keeps the record.
    """

    changes: tuple[Change, ...] = ()
    answer: Instance | None = None
    renews: bool = False
    held: bool | None = None
    aged: bool = False
    claim: Claim | None = None
    swept: expiry.Swept | None = None


@dataclass(slots=True)  # not frozen: it is made for every heartbeat, and that doubles its price
class Revised:
    """A committed change with its revision."""

    revision: int
    change: Change


@dataclass(slots=True)
class Catalogue:
    """All records of one epoch.

    Args:
        epoch: Names this life of the catalogue; revisions of different epochs cannot be compared.
        shared: A shared store holds the leases; only a lease that it lost is aged here.
        capacity: Most records at once.
        rules: How leases end.

    `healthy` counts the records that run and whose lease holds.
    """

    epoch: str
    shared: bool = False
    capacity: int = 10_000
    rules: ExpiryRules = field(default_factory=ExpiryRules)
    revision: int = 0
    generation_floor: int = 0
    renewals: int = 0
    preserving_since: float | None = None
    healthy: int = 0
    _entries: dict[str, Entry] = field(default_factory=dict)
    _tombstones: dict[str, Tombstone] = field(default_factory=dict)

    # Reading.

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, name: str) -> Entry | None:
        """The entry of `name`, or None."""
        return self._entries.get(name)

    # Writing.

    def load(self, instances: Iterable[Instance], now: float, *, generation_floor: int = 0) -> None:
        """Fill an empty catalogue from a store; every lease starts anew with its full length (docs/faults.md C2)."""
        for instance in instances:
            self.revision += 1
            fresh = structs.replace(instance, stale=False, suspect=False, health=HealthStatus.UNKNOWN)
            renewed_at = now - ttl_s(fresh) if self.shared else now  # nothing was heard here yet
            self._entries[instance.name] = Entry(fresh, renewed_at, self.revision, held=self.shared)
            self.healthy += fresh.is_healthy
        self.raise_floor(generation_floor)

    def raise_floor(self, generation: int) -> None:
        """New names get generations above `generation` from now on."""
        self.generation_floor = max(self.generation_floor, generation)

    def renew_unheld(self, now: float) -> None:
        """Give every lease that no store holds its full length from `now` on: the store was away and lost them."""
        for entry in self._entries.values():
            if not entry.held and not entry.instance.stale:
                entry.renewed_at = now

    def apply(self, command: Command, now: float) -> tuple[Decision, tuple[Revised, ...]]:
        """Decide and commit at once.

        Raises:
            Refused: And nothing has changed.
        """
        decision = self.decide(command, now)
        return decision, self.commit(decision, now)

    def decide(self, command: Command, now: float) -> Decision:  # noqa: PLR0911 - one return per command
        """What `command` would do now; changes nothing.

        Raises:
            Unknown: There is no such record.
            Conflict: Somebody else owns the name.
            Full: There is no room for another record.
        """
        match command:
            case Renew():
                return self._renew(command, now)
            case Register(registration):
                return self._register(registration)
            case Update(name, fields):
                return self._update(name, fields)
            case Deregister(name, instance_id):
                return self._deregister(name, instance_id)
            case SetDraining(name, on, hand_over):
                current = self._record(name)
                after = structs.replace(current, draining=on, hand_over=on and hand_over)
                return self._changed(current, after, durable=True)
            case SetHealth(name, generation, health):
                return self._set_health(name, generation, health)
            case Sweep():
                leases = ((it.instance, now if it.held else it.renewed_at) for it in self._entries.values())
                swept = expiry.sweep(leases, now, self.preserving_since, self.rules)
                return Decision(swept.changes, swept=swept)
            case Rewrite() | Learn() | Forget() | LeaseEnd():
                return self._decide_for_store(command)
        assert_never(command)

    def commit(self, decision: Decision, now: float) -> tuple[Revised, ...]:
        """Make a decision true. Every change gets the next revision."""
        revised = []
        for change in decision.changes:
            self.revision += 1
            revised.append(Revised(self.revision, change))
            if isinstance(change, Upsert):
                self._put(change, now)
            else:
                self._remove(change, now)
        if decision.swept is not None:
            self.preserving_since = decision.swept.preserving_since
            self._tombstones = {name: stone for name, stone in self._tombstones.items() if now < stone.until}
        if decision.answer is not None and (entry := self._entries.get(decision.answer.name)):
            if decision.renews:
                entry.renewed_at = now
                self.renewals += 1
            if decision.held is not None:
                entry.held = decision.held
            if decision.aged:
                entry.renewed_at = min(entry.renewed_at, now - ttl_s(entry.instance))
        return tuple(revised)

    # Deciding.

    def _record(self, name: str) -> Instance:
        entry = self._entries.get(name)
        if entry is None:
            raise Unknown(f"service {name!r} not found")
        return entry.instance

    def _must_rewrite(self, current: Instance) -> bool:
        """True when a renewed record must be written again, because a store may have let go of it."""
        return current.stale or (self.shared and not self._entries[current.name].held)

    def _decide_for_store(self, command: StoreCommand) -> Decision:
        match command:
            case Rewrite(name):
                current = self._record(name)
                return Decision((Upsert(current, durable=True),), current)
            case Learn(instance):
                return self._learn(instance)
            case Forget(name):
                current = self._record(name)
                return Decision((Removed(current, "deregistered", durable=False),), current)
            case LeaseEnd(name):
                current = self._record(name)
                changed = self._changed(current, structs.replace(current, stale=True), durable=False)
                changed.held, changed.aged = False, True
                return changed
        assert_never(command)

    def _learn(self, instance: Instance) -> Decision:
        entry = self._entries.get(instance.name)
        after = structs.replace(instance, stale=False, suspect=False, health=HealthStatus.UNKNOWN)
        if entry is not None:
            here = entry.instance
            same_report = lasting(here.report) == lasting(after.report)
            after = structs.replace(
                after,
                health=here.health if here.generation == after.generation else HealthStatus.UNKNOWN,
                report=here.report if same_report else after.report,
            )
            if after == here:
                return Decision((), here, held=True)
        aged = entry is None or entry.instance.generation != after.generation
        return Decision((Upsert(after, durable=False),), after, held=True, aged=aged)

    def _renew(self, beat: Renew, now: float) -> Decision:
        entry = self._entries.get(beat.name)
        current = check_heartbeat(None if entry is None else entry.instance, beat, self._tombstones.get(beat.name), now)
        status = service_status(current, beat)
        report = current.report if beat.report is None else beat.report
        rewrite = self._must_rewrite(current)
        if status == current.registration.status and not rewrite and report == current.report:
            return Decision((), current, renews=True)
        registration = current.registration
        durable = rewrite or status != registration.status or lasting(report) != lasting(current.report)
        if status != registration.status:
            registration = structs.replace(registration, status=status)
        after = structs.replace(current, registration=registration, report=report, stale=False, suspect=False)
        return Decision((Upsert(after, durable),), after, renews=True)

    def _register(self, registration: Registration) -> Decision:
        entry = self._entries.get(registration.name)
        current = None if entry is None else entry.instance
        claim = judge_registration(current, registration)
        if current is None:
            if len(self._entries) >= self.capacity:
                raise Full(f"the registry holds {self.capacity} records and takes no more")
            new = Instance(registration, generation=self.generation_floor + 1)
            return Decision((Upsert(new, durable=True, claims=True),), new, renews=True, claim=claim)
        if claim is Claim.REPEAT:
            same = structs.replace(registration, timestamp=current.registration.timestamp)  # when it first said so
            after = structs.replace(current, registration=same, stale=False, suspect=False)
            changes = (
                (Upsert(after, durable=True, claims=True),) if self._must_rewrite(current) or after != current else ()
            )
            return Decision(changes, after, renews=True, claim=claim)
        owner = current.registration
        same_place = (owner.host, owner.port, owner.url) == (registration.host, registration.port, registration.url)
        after = Instance(
            registration,
            generation=current.generation + 1,
            hand_over=current.hand_over and owner.instance_id == registration.instance_id,
            draining=current.draining and owner.instance_id == registration.instance_id,
            health=current.health if same_place else HealthStatus.UNKNOWN,
        )
        return Decision((Upsert(after, durable=True, claims=True),), after, renews=True, claim=claim)

    def _update(self, name: str, fields: Mapping[str, object]) -> Decision:
        current = self._record(name)
        registration = structs.replace(current.registration, **fields)
        after = structs.replace(current, registration=registration, stale=False, suspect=False)
        changes = (Upsert(after, durable=True),) if self._must_rewrite(current) or after != current else ()
        return Decision(changes, after, renews=True)

    def _deregister(self, name: str, instance_id: str | None) -> Decision:
        current = self._record(name)
        owner = current.registration.instance_id
        if instance_id is not None and instance_id != owner:
            holder = f"instance {owner}" if owner else "no instance"
            where = f"{current.registration.host}:{current.registration.port}"
            raise Conflict(f"{name!r} belongs to {holder} at {where}; not deregistered")
        return Decision((Removed(current, "deregistered"),), current)

    def _set_health(self, name: str, generation: int, health: HealthStatus) -> Decision:
        entry = self._entries.get(name)
        if entry is None or entry.instance.generation != generation:
            return Decision()
        return self._changed(entry.instance, structs.replace(entry.instance, health=health), durable=False)

    @staticmethod
    def _changed(current: Instance, after: Instance, *, durable: bool) -> Decision:
        if after == current:
            return Decision((), current)
        return Decision((Upsert(after, durable),), after)

    # Committing.

    def _put(self, put: Upsert, now: float) -> None:
        instance = put.instance
        entry = self._entries.get(instance.name)
        if entry is None:
            entry = self._entries[instance.name] = Entry(instance, now, self.revision)
            self._tombstones.pop(instance.name, None)
            self.healthy += instance.is_healthy
        else:
            self.healthy += instance.is_healthy - entry.instance.is_healthy
        entry.instance = instance
        entry.revision = self.revision
        if put.durable and self.shared:
            entry.held = True

    def _remove(self, removed: Removed, now: float) -> None:
        self.healthy -= self._entries.pop(removed.name).instance.is_healthy
        self.generation_floor = max(self.generation_floor, removed.instance.generation)
        owner = removed.instance.registration
        if removed.reason == "deregistered" and owner.instance_id is not UNSET:
            self._tombstones[removed.name] = Tombstone(owner.instance_id, owner.incarnation, now + TOMBSTONE_S)
