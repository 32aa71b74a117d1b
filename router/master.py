"""The master: owns the sockets, follows the registry, probes replicas, feeds the workers, answers operators.

The directory is touched from this process's event loop only, between two awaits; one task publishes a table whenever it
changed. Requests never pass here, so nothing that happens here can break one.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from common.discovery.registry_client import RegistryClient, RegistryError
from common.exits import ConfigurationError
from common.http.tls import Tls, client_context, read_ca
from common.reload import Change
from common.settings import SettingsError
from common.tracing import require_tracing
from router import complaints, feed, last_table
from router.accounts import Accounts
from router.demand import Deployments
from router.directory import Directory
from router.journal import Journal, folder_of
from router.keys import Key
from router.lending import Lending
from router.model import Replica, Table
from router.prober import ProbeResult, ReplicaProber
from router.registry_keys import RegistryKeys
from router.replica_keys import ReplicaKeys
from router.settings import RouterSettings, read_api_keys, read_replica_keys
from router.static_file import StaticServices, read_static_services
from router.workers import WorkerPool

log = structlog.get_logger(__name__)
TICK_S = 1.0
REST_S = 150e-6
"""Between two tables, for each endpoint: a worker takes a fiftieth of that to put a table in force."""
FIGURES_REST_S = 500e-6
"""The same where only what can wait has changed; heartbeats of so many that this is more than a second are further apart than it."""
SAVING_REST = 50
"""How many times longer than saving it the pause after it is."""
UNREACHED_AFTER = 3
"""Requests in a row that say more than a probe does."""


class Master:
    """The parts of a running router that are not workers."""

    def __init__(self, settings: RouterSettings, pool: WorkerPool, tls: Tls | None = None) -> None:
        self.settings = settings
        self.pool = pool
        self.own_tls = tls or Tls()
        self.directory = Directory(
            grace_s=settings.service_removal_grace_period,
            max_errors=settings.max_errors,
            slots=settings.max_endpoints,
            default_limit=settings.max_in_flight,
        )
        self.registry_error: str | None = "not contacted yet" if settings.registry_url else None
        self.deployments = Deployments(self.replicas, pool.counters, pool.waiting, pool.tell_standings)
        pool.standings, pool.heard_waits = self.deployments.all, self.deployments.heard
        self.accounts = Accounts()
        pool.tokens_used = self.accounts.heard
        self._changed = asyncio.Event()
        self._unsaved = asyncio.Event()
        self.first_answer = asyncio.Event()
        self.prober: ReplicaProber | None = None
        """Set once the session is there; `pool.adapter_wanted` likewise."""
        self.static_keys: dict[str, str] = {}
        self._own_keys: tuple[Key, ...] = ()
        self.lending = Lending(fails_closed=settings.limits_fail_closed)
        pool.heard_leases, pool.gone = self.lending.heard, self.lending.gone
        self.registry_keys: RegistryKeys | None = None
        """Set where they are taken, once the port is known."""
        self.tls = client_context(None)
        """What our own probes check replicas on https with."""
        self._left_out = 0

    def connections(self) -> int:
        """Client connections."""
        return self.pool.connections()

    def workers_alive(self) -> int:
        """Workers that serve."""
        return self.pool.alive()

    def unreachable(self) -> dict[str, tuple[int, str]]:
        """By name: replicas that several requests in a row could not reach, how many, and why."""
        unreached = self.pool.unreached()
        if not unreached:  # nearly always
            return {}
        runs = {replica.name: unreached.get(replica.id, (0, "")) for replica in self.replicas()}
        return {name: run for name, run in runs.items() if run[0] >= UNREACHED_AFTER}

    async def watch_reach(self) -> None:
        """Log what becomes unreachable for requests, and what no longer is, for ever."""
        logged: set[str] = set()
        while True:
            await asyncio.sleep(TICK_S)
            unreachable = self.unreachable()
            for name in unreachable.keys() - logged:
                failures, reason = unreachable[name]
                log.warning("replica.unreachable", replica=name, failures=failures, reason=reason)
            for name in logged - unreachable.keys():
                log.info("replica.reached", replica=name)
            logged = set(unreachable)

    @property
    def table_path(self) -> Path:
        """Where the last known table is kept, one file per port."""
        return self.settings.data_dir / f"router-{self.pool.port}-table.json"

    def take_registry_keys(self) -> RegistryKeys:
        """Take what the registry said to an earlier router on this port; it is to be followed."""
        path = self.settings.data_dir / f"router-{self.pool.port}-keys.json"
        keys = self.registry_keys = RegistryKeys(path, self.give_keys)
        keys.load()
        self.give_keys()
        return keys

    def bind(self) -> None:
        """Take the port; where a registry is followed, what is counted is kept on disk until that has it.

        Raises:
            ConfigurationError: It cannot be had.
        """
        self.pool.bind()
        if self.settings.registry_url:
            self.accounts.journal = Journal(folder_of(self.settings.data_dir, self.pool.port))

    def replicas(self) -> list[Replica]:
        """All replicas known now."""
        return list(self.directory.replicas.values())

    async def follow(self, client: RegistryClient) -> None:
        """Take the registry's changes, for ever."""
        async for update in client.follow(poll_interval_s=self.settings.registry_sync_interval):
            if isinstance(update, RegistryError):
                if self.registry_error is None:
                    log.warning("registry.lost", reason=str(update))
                self.registry_error = str(update)
            else:
                if self.registry_error is not None:
                    log.info("registry.followed", url=client.url)
                self.registry_error = None
                if self.directory.apply(update, time.monotonic()):
                    self._changed.set()
                    if self.prober is not None:
                        self.prober.look()
            self.first_answer.set()

    def note_probe(self, name: str, generation: str, finding: ProbeResult) -> None:
        """Take a probe's finding, unless the replica was replaced meanwhile."""
        replica = self.directory.replicas.get(name)
        if replica is None or replica.generation != generation:
            return
        was, was_doubted = replica.probed_ok, replica.doubted
        replica.problem = finding.problem
        if self.directory.note_probe(
            name,
            ok=finding.ok,
            models=finding.models,
            objects=finding.objects,
            prefix=finding.prefix,
            calls=finding.calls,
        ):
            self._changed.set()
        if replica.probed_ok != was:
            log.info("replica.probe_verdict", replica=name, ok=replica.probed_ok)
        if was_doubted and not replica.doubted:
            self.pool.forgive(replica.slot, replica.id)

    def note_load(self, replica: Replica, adapter: str, refused_until: float | None) -> None:
        """Take a babysitter's answer to a load."""
        if self.directory.note_load(replica.name, replica.generation, adapter, refused_until=refused_until):
            self._changed.set()

    def load_files(self) -> None:
        """Read the static services, the API keys, the replicas' keys and CAs, our certificate, where they are set.

        Raises:
            SettingsError: One of them cannot be used; nothing is changed then.
            ConfigurationError: Likewise.
        """
        settings = self.settings
        static = read_static_services(settings.static_services) if settings.static_services else StaticServices()
        keys = read_api_keys(settings.api_keys_file) if settings.api_keys_file else ()
        ca, replica_keys = read_ca(settings.replica_ca_file), read_replica_keys(settings)
        material = self.own_tls.read()
        for fault in static.faults:
            log.error("static.entry_refused", reason=fault)
        self.static_keys = {name: self.static_keys[name] for name in static.faulty & self.static_keys.keys()}
        self.static_keys.update(static.keys)
        self.directory.set_keys(ReplicaKeys(self.static_keys, replica_keys))
        self.directory.set_static(static.services, kept=static.faulty)
        self.tls = client_context(ca, verify=settings.replica_tls_verify, shown=material)
        self.own_tls.put(material)
        self.pool.set_certificates(feed.Certificates(material, ca))
        self._own_keys = keys
        self.give_keys()
        self._changed.set()

    def give_keys(self) -> None:
        """Give the workers the keys of the file and of the registry."""
        keys = self._own_keys if self.registry_keys is None else self.registry_keys.beside(self._own_keys)
        self.lending.set_keys(keys, {key.name for key in keys} - {key.name for key in self._own_keys})
        self.pool.set_keys(keys, required=self.settings.registry_keys)

    def take(self, settings: RouterSettings) -> None:
        """Put settings in force here, with the files that they name; `renew_workers` does so in the workers.

        Raises:
            SettingsError: They cannot be used; nothing is changed then.
            ConfigurationError: Likewise.
        """
        require_tracing(settings)
        before, self.settings = self.settings, settings
        try:
            self.load_files()
        except (SettingsError, ConfigurationError):
            self.settings = before
            raise
        self.directory.grace_s = settings.service_removal_grace_period
        self.directory.max_errors = settings.max_errors
        self.directory.set_limit(settings.max_in_flight)

    async def renew_workers(self, changed: Sequence[str], reason: Change) -> None:
        """Replace the workers after a reload: when a setting of theirs may have changed, or a signal asks for it."""
        if changed or reason.asked:
            await self.pool.roll(self.settings)

    def limits_alone(self) -> bool:
        """No registry answers for its keys' limits: this router goes on with its share."""
        return self.lending.lost

    def left_out(self) -> int:
        """How many replicas are known and have no place in the table."""
        return len(self.directory.left_out)

    def is_ejected(self, replica: Replica) -> bool:
        """True while workers set it aside because of what their requests saw."""
        return self.pool.counters.ejected_until_s(replica.slot) > time.monotonic()

    def failing(self) -> dict[str, str]:
        """By name: what the registry is to be told of, see `complaints.py`."""
        return complaints.failing(self.replicas(), self.pool.counters)

    def next_table(self) -> Table:
        """The table as it stands; the rows of endpoints new in it are cleared before anybody can count in them."""
        if self.left_out() != self._left_out:
            self._left_out = self.left_out()
            few = sorted(self.directory.left_out)[:10]
            log.error("replica.no_slot", left_out=self._left_out, replicas=few, remedy="raise max_endpoints")
        taken, self.directory.taken = self.directory.taken, []
        for slot in taken:
            self.pool.counters.reset(slot)
        return self.directory.table()

    async def publish(self) -> None:
        """Publish a table whenever something changed; what can wait goes with the next one, or in a second or more."""
        published_at = 0.0
        while True:
            try:
                await asyncio.wait_for(self._changed.wait(), TICK_S)
            except TimeoutError:
                waited_s = time.monotonic() - published_at
                is_due = self.directory.figures and waited_s >= len(self.directory.replicas) * FIGURES_REST_S
                if not self.directory.expire(time.monotonic()) and not is_due:
                    continue
            if self._changed.is_set():
                self._unsaved.set()
            self._changed.clear()
            table = self.next_table()
            self.pool.publish(table)
            published_at = time.monotonic()
            await asyncio.sleep(len(table.endpoints) * REST_S)

    async def save(self) -> None:
        """Save what changed, for ever; of large tables not every change."""
        while True:
            await self._unsaved.wait()
            self._unsaved.clear()
            began = time.monotonic()
            await asyncio.to_thread(last_table.save, self.table_path, self.directory.saved())
            await asyncio.sleep(SAVING_REST * (time.monotonic() - began))
