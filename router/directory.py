"""PURE. Which replicas exist for this router: registry records, static services, our own probes, and time.

One `Directory` lives in the master and is written by one task only. It answers with immutable `Table`s. Rules:

- A record that vanished (from a snapshot, or by expiry) is kept for the grace period while our own probe passes; a
  deliberate deregistration takes it out at once (docs/contract.md 2, docs/faults.md D28).
- The registry's opinion and ours are separate verdicts: a stale lease makes an endpoint suspect, only our own failed
  probes or a status other than running take it down (D4).
- Static services never vanish.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from common.discovery.plan import plan_of
from common.wire.base import ModelObject
from common.wire.record import Beat, Delete, Put, ServiceRecord, Snapshot, Update
from common.wire.words import RecordKind
from router.model import Endpoint, Replica, Table
from router.replica_keys import ReplicaKeys
from router.serves import declared, has_messages
from router.streams.kinship import continues, lineages

FORMS = ("/v1", "")
"""Of a server's paths."""
OF_ITS_LIFE = (
    *("probe_failures", "probe_successes", "probed_ok", "doubted", "problem", "slot", "load_refused"),
    *("learned_models", "learned_prefix", "learned_objects", "learned_calls"),
)
"""What a replica keeps when only its record changes."""
RISE = 2
"""Good probes in a row that bring back a replica which probes took out (docs/faults.md A4)."""


@dataclass(slots=True)
class Directory:
    """All replicas by name.

    Args:
        grace_s: How long a vanished replica is kept.
        max_errors: Failed probes in a row that take a replica down.
        slots: How many endpoints the counters of counters has room for.
        default_limit: Requests at once for a replica that does not say; 0 for no limit.
    """

    grace_s: float
    max_errors: int
    slots: int
    default_limit: int = 0
    """To be changed by `set_limit`."""
    figures: bool = False
    """Something in the table has changed that can wait: how many requests wait in an engine."""
    replicas: dict[str, Replica] = field(default_factory=dict)
    version: int = 0
    keys: ReplicaKeys = field(default_factory=ReplicaKeys)
    """To be changed by `set_keys`."""
    _free: list[int] = field(default_factory=list)
    _next_slot: int = 0
    left_out: dict[str, Replica] = field(default_factory=dict)
    """Replicas for which there is no slot, by name; the first of them gets the next that is free."""
    taken: list[int] = field(default_factory=list)
    """Slots given to a new endpoint since the owner last cleared their rows."""

    def apply(self, update: Update, now: float) -> bool:
        """Take one line of the watch; returns whether the table may have changed."""
        match update:
            case Put(service=record):
                changed = self._put(record)
                self._admit()
                return changed
            case Snapshot(services=services):
                listed = {record.name for record in services if record.type == RecordKind.SERVER}
                for record in services:
                    self._put(record)
                for name in self.left_out.keys() - listed:
                    self._forget_left_out(name)
                for name in self.replicas.keys() - listed:
                    self._vanish(name, now)
                self.expire(now)
            case Delete(name=name, reason=reason):
                self._forget_left_out(name)
                replica = self.replicas.get(name)
                if replica is None or replica.static:
                    return False
                if reason == "expired":
                    return self._vanish(name, now)
                self._remove(name)
            case Beat():
                return False
        self._admit()
        return True

    def expire(self, now: float) -> bool:
        """Drop what has been absent for longer than the grace period, and refusals whose time is over."""
        gone = [
            replica.name
            for replica in self.replicas.values()
            if replica.absent_since is not None and now - replica.absent_since >= self.grace_s
        ]
        for name in gone:
            self._remove(name)
        self._admit()
        over = [
            (one, adapter) for one in self.replicas.values() for adapter, at in one.load_refused.items() if at <= now
        ]
        for replica, adapter in over:
            del replica.load_refused[adapter]
            replica.row = None
        return bool(gone or over)

    def note_load(self, name: str, generation: str, adapter: str, *, refused_until: float | None) -> bool:
        """Take a babysitter's answer: an adapter is loaded, or refused for a time; returns whether the table changed."""
        replica = self.replicas.get(name)
        if replica is None or replica.generation != generation:
            return False
        replica.row = None
        if refused_until is not None:
            replica.load_refused[adapter] = refused_until
        elif adapter in replica.loadable:
            replica.loaded = (*replica.loaded, adapter)
        return True

    def set_keys(self, keys: ReplicaKeys) -> None:
        """Take the replicas' own keys."""
        self.keys = keys
        for replica in self.replicas.values():
            replica.authorization = keys.of(replica)
            replica.row = None

    def set_limit(self, limit: int) -> None:
        """Take another limit for replicas that do not say theirs."""
        self.default_limit = limit
        for replica in self.replicas.values():
            replica.row = None

    def set_static(self, records: Iterable[ServiceRecord], *, kept: Collection[str] = ()) -> None:
        """Replace the static services; those named in `kept` stay as they are, if there are any."""
        routable = {record.name: record for record in records if record.type in (None, RecordKind.SERVER)}
        stay = routable.keys() | set(kept)
        for name in [replica.name for replica in self.replicas.values() if replica.static]:
            if name not in stay:
                self._remove(name)
        self.left_out = {name: one for name, one in self.left_out.items() if not one.static or name in stay}
        for record in routable.values():
            self._store(Replica(record, generation=f"static@{_place(record)}", leased=True, static=True))
        self._admit()

    def saved(self) -> list[ServiceRecord]:
        """The records worth keeping for the next run."""
        everyone = (*self.replicas.values(), *self.left_out.values())
        return [replica.record for replica in everyone if not replica.static]

    def restore(self, records: Iterable[ServiceRecord]) -> None:
        """Take the table of an earlier run: routable once our own probe passes, until the registry speaks."""
        for record in records:
            self._put(record)
            if record.name in self.replicas:
                self.replicas[record.name].leased = False
                self.replicas[record.name].row = None

    def note_probe(
        self,
        name: str,
        *,
        ok: bool,
        models: tuple[str, ...] | None = None,
        objects: Mapping[str, ModelObject] | None = None,
        prefix: str | None = None,
        calls: tuple[str, ...] | None = None,
    ) -> bool:
        """Take the result of one probe of ours; returns whether the table changed."""
        replica = self.replicas.get(name)
        if replica is None:
            return False
        before = _seen(replica)
        if ok:
            replica.probe_failures = 0
            replica.probe_successes += 1
            if replica.probed_ok is not False or replica.probe_successes >= RISE:
                replica.probed_ok = True
            if replica.probe_successes >= RISE:
                replica.doubted = False
        else:
            replica.doubted = True
            replica.probe_successes = 0
            replica.probe_failures += 1
            if replica.probe_failures >= self.max_errors:
                replica.probed_ok = False
        objects_before = replica.learned_objects
        learned = (("models", models), ("objects", objects), ("prefix", prefix), ("calls", calls))
        for what, found in learned:
            if found is not None:
                setattr(replica, f"learned_{what}", found)
        if before != _seen(replica) or replica.learned_objects != objects_before:
            replica.row = None
        return before != _seen(replica)

    def table(self) -> Table:
        """The endpoints as they stand now, under a new version."""
        self.version += 1
        self.figures = False
        return Table.of(self.version, tuple(self._row(replica) for replica in self.replicas.values()))

    def _row(self, replica: Replica) -> Endpoint:
        """Its endpoint: the very one of the last table while nothing about it has changed."""
        if replica.row is None:
            replica.row = self._endpoint(replica)
        return replica.row

    def _endpoint(self, replica: Replica) -> Endpoint:
        hints, plan, objects = replica.hints, replica.plan, replica.model_objects
        return Endpoint(
            id=replica.id,
            name=replica.name,
            host=plan.host,
            port=plan.port,
            tls=plan.tls,
            base_path=plan.base_path,
            authorization=plan.authorization,
            slot=replica.slot,
            weight=replica.weight,
            models=replica.models,
            loadable=replica.loadable,
            cache_type=hints.cache_type,
            api_prefix=hints.api_prefix if hints.api_prefix in FORMS else plan.api_prefix or replica.learned_prefix,
            eligibility=replica.eligibility,
            limit=hints.max_concurrency or self.default_limit,
            serves=declared(hints.serves) or replica.learned_calls or None,
            messages=has_messages(hints.messages, hints.serves, replica.learned_calls),
            waiting=hints.replica.waiting if hints.replica is not None else None,
            slow_start_s=hints.slow_start_s,
            end_marked=hints.stream_end_mark,
            continues=continues(hints, objects.values()),
            lineages=lineages(hints, objects, replica.models),
            hands_over=replica.record.draining and bool(replica.record.hand_over),
            absent=replica.absent,
        )

    def _vanish(self, name: str, now: float) -> bool:
        """The registry no longer lists `name`, and nobody said goodbye: the grace period begins, once."""
        replica = self.replicas[name]
        if replica.static or replica.absent_since is not None:
            return False
        replica.absent_since = now
        replica.leased = False
        replica.row = None
        return True

    def _put(self, record: ServiceRecord) -> bool:
        """Take a record; returns whether the table has changed in what cannot wait. Most records only say that they live."""
        present = self.replicas.get(record.name)
        if present is not None and present.static:
            return False
        if record.type != RecordKind.SERVER:
            self._forget_left_out(record.name)
            if present is not None:
                self._remove(record.name)
            return present is not None
        # A legacy registry gives no generation; the address then tells one life from the next.
        generation = f"{record.instance_id or ''}.{record.incarnation}.{record.generation}@{_place(record)}"
        replica = Replica(record, generation, leased=record.is_healthy or record.draining)
        self._store(replica)
        if present is None or present.row is None or present.generation != generation:
            return True
        before, after = present.row, self._row(replica)
        if (
            after == before and not after.waiting
        ):  # the same number as before is a report anew: it holds for a while only
            replica.row = before
            return False
        self.figures = True
        return replace(after, waiting=before.waiting) != before

    def _store(self, replica: Replica) -> None:
        replica.authorization = self.keys.of(replica)
        present = self.replicas.get(replica.name)
        if present is not None and present.generation == replica.generation:
            for name in OF_ITS_LIFE:
                setattr(replica, name, getattr(present, name))
        else:
            if present is not None:
                self._remove(replica.name)
            slot = self._take_slot()
            if slot is None:
                self.left_out[replica.name] = replica
                return
            replica.slot = slot
            self.taken.append(slot)
            if present is not None and _place(present.record) == _place(replica.record):
                # Most likely the same server once more. It is asked again, but must be routable until then.
                replica.learned_models, replica.learned_prefix = present.learned_models, present.learned_prefix
        self.left_out.pop(replica.name, None)
        self.replicas[replica.name] = replica

    def _admit(self) -> None:
        """Slots may have come free: those that had none get them, the longest left out first."""
        while self.left_out and (self._free or self._next_slot < self.slots):
            self._store(self.left_out.pop(next(iter(self.left_out))))

    def _forget_left_out(self, name: str) -> None:
        replica = self.left_out.get(name)
        if replica is not None and not replica.static:
            del self.left_out[name]

    def _remove(self, name: str) -> None:
        self._free.append(self.replicas.pop(name).slot)

    def _take_slot(self) -> int | None:
        # The longest-free slot first: workers may still finish a request that counts on a slot just left.
        if self._next_slot < self.slots:
            self._next_slot += 1
            return self._next_slot - 1
        return self._free.pop(0) if self._free else None


def _place(record: ServiceRecord) -> str:
    """Where it is, as part of a generation: `host:port`, with scheme and base path when they are not the usual ones."""
    return plan_of(record.url, record.host, record.port).url.removeprefix("http://")


def _seen(replica: Replica) -> tuple[object, ...]:
    """What probes say of a replica, as far as the table shows it."""
    learned = replica.learned_models, replica.learned_prefix, replica.learned_calls
    return replica.probed_ok, replica.eligibility, *learned
