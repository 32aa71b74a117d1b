"""The store of several registries: etcd, one key per record under a lease of the record's own length.

A heartbeat is a keepalive of that lease, never a put: etcd writes nothing for it. A deregistration leaves a tombstone
key for a minute, in the same transaction: it tells the other registries that the key went on purpose, and keeps one
that was cut off from writing the record again. Every write compares the revision that this registry saw last.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

import msgspec.structs
import structlog

from common.exits import ConfigurationError
from common.http.client import make_session
from common.paced import paced
from common.tasks import TaskScope
from registry.core.expiry import ttl_s
from registry.core.model import Change, Instance, Removed, Upsert
from registry.core.ownership import TOMBSTONE_S
from registry.core.store import (
    Away,
    Back,
    Event,
    Loaded,
    StoreConflict,
    StoreError,
    StoreUnavailable,
    Vanished,
    Written,
)
from registry.store.codec import decode, encode
from registry.store.etcd_documents import EtcdDocuments
from registry.store.gateway import (
    CALL_TIMEOUT_S,
    Compacted,
    Gateway,
    KeyValue,
    Login,
    NotFound,
    Request,
    StoreRefused,
    StreamResult,
    range_end,
)
from registry.store.keepalives import Keepalives
from registry.store.leases import Burial, grant

log = structlog.get_logger(__name__)
ROOT = "/inference-svc/v1/"
SERVICES = ROOT + "services/"
TOMBSTONES = ROOT + "tombstones/"
PULSE_S = 2.0
"""Between two checks that etcd is there and that the watch has missed nothing."""
OPEN_WITHIN_S = 30.0
TRIES = 3


@dataclass(frozen=True, slots=True)
class Known:
    """What this registry last knew of a key. `length_s`: of its lease, which etcd gives it once and for all."""

    revision: int
    lease: int
    generation: int
    length_s: float


class Diverged(StoreUnavailable):
    """The watch cannot be trusted: etcd lost data, or events."""


class EtcdStore:
    """Records in an etcd.

    Args:
        urls: Base URLs of its members.
        tls: What members on https are checked with, and our certificate; None where all are on http.
        login: Whom to be, or None where etcd asks for nobody.
    """

    shared = True

    def __init__(self, urls: Sequence[str], *, tls: ssl.SSLContext | None = None, login: Login | None = None) -> None:
        self._urls = urls
        self._tls = tls
        self._login = login
        self._known: dict[str, Known] = {}
        self._dropped: dict[str, tuple[int, float]] = {}  # what was told before may still wait its turn
        self._rubbish: set[str] = set()
        self._burial = Burial(self._calls)
        self._revision = 0
        self._activity = 0
        self._keepalives: Keepalives | None = None
        self._gateway: Gateway | None = None
        self._scope = TaskScope("etcd")
        self.documents = EtcdDocuments(ROOT, self._calls)

    # The contract.

    async def open(self) -> Loaded:
        """Connect and take a snapshot; waits a while for an etcd that is still starting."""
        self._gateway = Gateway(self._urls, make_session(timeout_s=CALL_TIMEOUT_S, tls=self._tls), self._login)
        await self._scope.__aenter__()
        self._keepalives = Keepalives(self._gateway)
        self._scope.spawn("keepalives", self._keepalives.run(), service=True)
        deadline = time.monotonic() + OPEN_WITHIN_S
        while True:
            try:
                back = await self._snapshot()
                break
            except StoreUnavailable as error:
                if isinstance(error, StoreRefused) or time.monotonic() > deadline:
                    raise ConfigurationError(f"store at {','.join(self._urls)}: {error}") from error
                log.warning("store.waiting", reason=str(error))
                await asyncio.sleep(1.0)
        return Loaded(tuple(back.instances.values()), back.version)

    async def write(self, changes: Sequence[Change]) -> Sequence[Change]:
        """Write one change (or several, each by itself: only a sweep has several, and etcd already dropped those)."""
        self._activity += 1
        return [await (self._put(it) if isinstance(it, Upsert) else self._delete(it)) for it in changes]

    def renew(self, name: str) -> bool:
        """Keep the lease of `name` alive, together with all others that ask about now."""
        known = self._known.get(name)
        if known is None or self._keepalives is None:
            return False
        self._keepalives.renew(known.lease)
        return True

    @property
    def renewed(self) -> int:
        """How many leases etcd has renewed for this registry since it was opened."""
        return 0 if self._keepalives is None else self._keepalives.renewed

    def accept(self, event: Event) -> bool:
        """Compare an event with what this registry wrote itself."""
        match event:
            case Written(instance, version, lease):
                known = self._known.get(instance.name)
                if version <= max(known.revision if known else 0, self._dropped.get(instance.name, (0, 0.0))[0]):
                    return False
                self._known[instance.name] = Known(version, lease, instance.generation, ttl_s(instance))
            case Vanished(name, version, _):
                known = self._known.get(name)
                if known is None or known.revision >= version:
                    return False
                del self._known[name]
            case _:
                pass
        return True

    async def look(self, name: str) -> Written | Vanished | None:
        """Read one record, ahead of the watch."""
        reply = await self._calls().call("/kv/txn", {"success": _reads(name)})
        here, buried = (it.response_range.kvs for it in reply.responses)
        if not here:
            return Vanished(name, reply.header.revision, bool(buried))
        instance = _instance(item := here[0])
        return None if instance is None else Written(instance, item.mod_revision, item.lease)

    async def events(self) -> AsyncGenerator[Event]:
        """The watch, from the last snapshot on; a new snapshot after compaction or any doubt."""
        while True:
            try:
                async with contextlib.aclosing(self._batches()) as batches:
                    async for batch in batches:
                        async for event in paced(self._events(batch)):
                            yield event
                        self._revision = max(self._revision, batch.header.revision)
                        since = time.monotonic() - TOMBSTONE_S
                        self._dropped = {name: it for name, it in self._dropped.items() if it[1] > since}
            except (StoreUnavailable, Compacted) as error:
                yield Away(str(error))
            yield await self._come_back()

    async def close(self) -> None:
        """Stop keepalives and let go of the connections; leases end by themselves unless another registry renews."""
        await self._scope.close()
        if self._gateway is not None:
            await self.documents.resign()
            await self._gateway.close()
            self._gateway = None

    # Reading.

    def _calls(self) -> Gateway:
        if self._gateway is None:
            raise StoreUnavailable("the store is closed")
        return self._gateway

    async def _snapshot(self) -> Back:
        items, revision = await self._calls().read_all(ROOT)
        instances: dict[str, Instance] = {}
        known: dict[str, Known] = {}
        rubbish: set[str] = set()
        async for item in paced(items):
            if not item.name.startswith(SERVICES):
                continue
            if (instance := _instance(item)) is None:
                rubbish.add(item.name)
            else:
                instances[instance.name] = instance
                known[instance.name] = Known(item.mod_revision, item.lease, instance.generation, ttl_s(instance))
        buried = frozenset(it.name.removeprefix(TOMBSTONES) for it in items if it.name.startswith(TOMBSTONES))
        self._known, self._dropped, self._rubbish, self._revision = known, {}, rubbish, revision
        return Back(instances, buried - instances.keys(), revision)

    async def _come_back(self) -> Back:
        pause_s = 0.1
        while True:
            await asyncio.sleep(pause_s)
            try:
                return await self._snapshot()
            except StoreError as error:
                log.warning("store.still_away", reason=str(error))
                pause_s = min(pause_s * 2, 2.0)

    async def _batches(self) -> AsyncGenerator[StreamResult]:
        """The watch, with a pulse beside it."""
        batches = self._calls().watch(ROOT, self._revision + 1)
        upcoming = asyncio.ensure_future(anext(batches))
        next_pulse = time.monotonic() + PULSE_S
        doubts, activity = 0, self._activity
        try:
            while True:
                await asyncio.wait({upcoming}, timeout=max(0.0, next_pulse - time.monotonic()))
                if upcoming.done():
                    self._activity += 1
                    yield upcoming.result()
                    upcoming = asyncio.ensure_future(anext(batches))
                if time.monotonic() >= next_pulse:
                    agrees = await self._pulse()
                    # While records come and go the counts may differ; in silence they may not.
                    doubts = 0 if agrees or activity != self._activity else doubts + 1
                    activity = self._activity
                    if doubts > 1:
                        raise Diverged(f"etcd has another number of records than the {len(self._known)} known here")
                    next_pulse = time.monotonic() + PULSE_S
        finally:
            upcoming.cancel()
            with contextlib.suppress(asyncio.CancelledError, StoreError, Compacted):
                await upcoming
            await batches.aclose()

    def _events(self, batch: StreamResult) -> list[Event]:
        """What a batch means: a deletion in the revision of a tombstone was on purpose, any other is a lease's end."""
        buried = {
            (event.kv.mod_revision, event.kv.name.removeprefix(TOMBSTONES))
            for event in batch.events
            if not event.deleted and event.kv.name.startswith(TOMBSTONES)
        }
        meant: list[Event] = []
        for event in batch.events:
            item = event.kv
            if not item.name.startswith(SERVICES):
                continue
            self._rubbish.discard(item.name)
            if event.deleted:
                name = item.name.removeprefix(SERVICES)
                meant.append(Vanished(name, item.mod_revision, (item.mod_revision, name) in buried))
            elif (instance := _instance(item)) is not None:
                meant.append(Written(instance, item.mod_revision, item.lease))
            else:
                self._rubbish.add(item.name)
        return meant

    async def _pulse(self) -> bool:
        """True when etcd has as many records as are known here.

        Raises:
            StoreUnavailable: It does not answer.
            Diverged: It has gone back in time: another data directory, or a restored backup.
        """
        counted = {"key": SERVICES.encode(), "range_end": range_end(SERVICES), "count_only": True}
        reply = await self._calls().call("/kv/range", counted)
        if reply.header.revision < self._revision:
            raise Diverged(f"etcd is at revision {reply.header.revision}, before {self._revision}")
        return reply.count == len(self._known) + len(self._rubbish)

    # Writing.

    async def _put(self, put: Upsert) -> Upsert:
        name = put.name
        for _ in range(TRIES):
            known, instance = self._known.get(name), put.instance
            fits = known and (known.generation, known.length_s) == (instance.generation, ttl_s(instance))
            lease, revision = (known.lease, 0) if known and fits else await grant(self._calls(), ttl_s(instance))
            if known is None and put.claims:
                instance = msgspec.structs.replace(instance, generation=max(instance.generation, revision + 1))
            written = await self._transact(
                name,
                [_unchanged(name, known), *_unburied(name, put, known, revision)],
                [{"request_put": {"key": _key(SERVICES, name), "value": encode(instance), "lease": lease}}]
                + ([{"request_delete_range": {"key": _key(TOMBSTONES, name)}}] if put.claims else []),
            )
            if written:
                self._known[name] = Known(written, lease, instance.generation, ttl_s(instance))
                self._dropped.pop(name, None)
                return replace(put, instance=instance)
        raise StoreUnavailable(f"the lease of {name!r} ends before its record is written")

    async def _delete(self, removed: Removed) -> Removed:
        name = removed.name
        if removed.reason != "deregistered":
            return removed
        for _ in range(TRIES):
            written = await self._transact(
                name,
                [_unchanged(name, self._known.get(name))],
                [
                    {"request_delete_range": {"key": _key(SERVICES, name)}},
                    {"request_put": {"key": _key(TOMBSTONES, name), "value": b"", "lease": await self._burial.lease()}},
                ],
            )
            if written:
                self._known.pop(name, None)
                self._dropped[name] = written, time.monotonic()
                return removed
            self._burial.forget()
        raise StoreUnavailable(f"the lease of {name!r} ends before its record is removed")

    async def _transact(self, name: str, compare: Sequence[Request], success: Sequence[Request]) -> int:
        """Returns the revision written, or 0 when the key or its lease ended meanwhile and the write must start anew.

        Raises:
            StoreConflict: Another registry changed the name.
        """
        body = {"compare": compare, "success": success, "failure": _reads(name)}
        try:
            reply = await self._calls().call("/kv/txn", body)
        except NotFound:
            self._known.pop(name, None)
            return 0
        if reply.succeeded:
            return reply.header.revision
        here, buried = (it.response_range.kvs for it in reply.responses)
        had = self._known.pop(name, None)
        if here and (instance := _instance(here[0])) is not None:
            self._known[name] = Known(here[0].mod_revision, here[0].lease, instance.generation, ttl_s(instance))
            raise StoreConflict(name, instance)
        if buried:
            self._dropped[name] = reply.header.revision, time.monotonic()
            raise StoreConflict(name, None)
        if had is None:
            raise StoreUnavailable(f"etcd has something at {name!r} that is no record")
        return 0


def _instance(item: KeyValue) -> Instance | None:
    """The record in a key; None, and a warning, for something that is none or stands under another's name."""
    try:
        instance = decode(item.value)
    except (msgspec.DecodeError, TypeError) as error:
        log.warning("store.record_unreadable", key=item.name, reason=str(error))
        return None
    if SERVICES + instance.name != item.name:
        log.warning("store.record_misplaced", key=item.name, name=instance.name)
        return None
    return instance


def _key(prefix: str, name: str) -> bytes:
    return f"{prefix}{name}".encode()


def _reads(name: str) -> list[Request]:
    """The operations that read a record and its tombstone."""
    return [{"request_range": {"key": _key(prefix, name)}} for prefix in (SERVICES, TOMBSTONES)]


def _unchanged(name: str, known: Known | None) -> Request:
    """The comparison that fails when another registry was quicker."""
    key = {"key": _key(SERVICES, name), "result": "EQUAL"}
    if known is None:
        return {**key, "target": "CREATE", "create_revision": 0}
    return {**key, "target": "MOD", "mod_revision": known.revision}


def _unburied(name: str, put: Upsert, known: Known | None, granted_at: int) -> list[Request]:
    """The comparison that keeps a forgotten record from coming back.

    Nobody may write again what was deregistered elsewhere; a client that registers may, unless the deregistration came
    after its generation was chosen.
    """
    if known is not None:
        return []
    key = {"key": _key(TOMBSTONES, name)}
    if put.claims:
        return [{**key, "target": "MOD", "result": "LESS", "mod_revision": granted_at + 1}]
    return [{**key, "target": "CREATE", "result": "EQUAL", "create_revision": 0}]
