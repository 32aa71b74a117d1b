"""The master: owns the sockets, follows the registry, probes replicas, feeds the workers, answers operators.

The directory is touched from this process's event loop only, between two awaits; one task publishes a table whenever it
changed. Requests never pass here, so nothing that happens here can break one.
"""

import asyncio
import random
import tempfile
import time
from pathlib import Path

import structlog
from aiohttp import web

from common.discovery.registry_client import RegistryClient, RegistryError
from common.http.access import read_token, require_guard
from common.http.client import make_session
from common.http.serve import until_stopped
from common.service import ConfigurationError
from common.settings import SettingsError
from common.tasks import TaskScope
from router import last_table
from router.control.app import Overview, make_app
from router.crew import Crew
from router.directory import Directory
from router.model import Replica
from router.prober import Finding, Prober
from router.settings import RouterSettings, read_static_services

log = structlog.get_logger(__name__)
TICK_S = 1.0
FIRST_ANSWER_WAIT_S = 2.0
"""How long the start waits for the registry before it serves from the last known table."""


class Master:
    """The parts of a running router that are not workers."""

    def __init__(self, settings: RouterSettings, crew: Crew) -> None:
        self.settings = settings
        self.crew = crew
        self.directory = Directory(
            grace_s=settings.service_removal_grace_period,
            max_errors=settings.max_errors,
            slots=settings.max_endpoints,
        )
        self.registry_error: str | None = "not contacted yet"
        self._changed = asyncio.Event()
        self.first_answer = asyncio.Event()

    @property
    def table_path(self) -> Path:
        """Where the last known table is kept, one file per port."""
        return self.settings.data_dir / f"router-{self.crew.port}-table.json"

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
            self.first_answer.set()

    def note_probe(self, name: str, generation: str, finding: Finding) -> None:
        """Take a probe's finding, unless the replica was replaced meanwhile."""
        replica = self.directory.replicas.get(name)
        if replica is None or replica.generation != generation:
            return
        was = replica.probed_ok
        if self.directory.note_probe(name, ok=finding.ok, models=finding.models, prefix=finding.prefix):
            self._changed.set()
        if replica.probed_ok != was:
            log.info("replica.probe_verdict", replica=name, ok=replica.probed_ok)

    def load_static(self) -> None:
        """Read the static services file, if there is one.

        Raises:
            ConfigurationError: It cannot be used.
        """
        path = self.settings.static_services
        if path is None:
            return
        try:
            self.directory.set_static(read_static_services(path))
        except SettingsError as error:
            raise ConfigurationError(str(error)) from error

    async def publish(self) -> None:
        """Publish a table whenever something changed, and save it."""
        while True:
            try:
                await asyncio.wait_for(self._changed.wait(), TICK_S)
            except TimeoutError:
                if not self.directory.expire(time.monotonic()):
                    continue
            self._changed.clear()
            self.crew.publish(self.directory.table())
            await asyncio.to_thread(last_table.save, self.table_path, self.directory.saved())


async def serve(settings: RouterSettings) -> None:
    """Run a router until it is told to stop.

    Raises:
        ConfigurationError: The address, a token file or the static services cannot be used.
        TaskFailed: A defect of ours.
    """
    require_guard("router", settings.host, guarded=False, insecure=settings.insecure_no_auth)
    token = read_token(settings.registry_token_file) if settings.registry_token_file else None
    with tempfile.TemporaryDirectory(prefix="svc-router-") as folder:
        control_path = str(Path(folder) / "control.sock")
        async with (
            TaskScope("router") as scope,
            make_session(timeout_s=settings.health_timeout, limit=256) as session,
        ):
            crew = Crew(settings, control_path, scope)
            crew.bind()
            master = Master(settings, crew)
            master.load_static()
            master.directory.restore(last_table.load(master.table_path))
            runner = web.AppRunner(make_app(Overview(master, crew.board)), access_log=None, shutdown_timeout=1.0)
            await runner.setup()
            await web.UnixSite(runner, control_path).start()
            client = RegistryClient(settings.registry_url, session, token=token)
            prober = Prober(
                session,
                master.replicas,
                master.note_probe,
                interval_s=settings.health_interval,
                timeout_s=settings.health_timeout,
                rng=random.Random(),  # noqa: S311 - jitter, not secrets
            )
            scope.spawn("follow", master.follow(client), service=True)
            scope.spawn("probe", prober.run(), service=True)
            await _wait_for_first_answer(master)
            await crew.start(master.directory.table())
            scope.spawn("publish", master.publish(), service=True)
            log.info("service.listening", what="router", host=settings.host, port=crew.port, workers=settings.workers)
            try:
                await until_stopped(scope)
            finally:
                await crew.stop()
                await runner.cleanup()


async def _wait_for_first_answer(master: Master) -> None:
    """Give the registry a moment, so that a fresh start does not answer 503 with a registry at hand."""
    try:
        await asyncio.wait_for(master.first_answer.wait(), FIRST_ANSWER_WAIT_S)
    except TimeoutError:
        log.warning("registry.silent", reason="starting from the last known table")
