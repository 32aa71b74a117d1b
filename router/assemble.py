"""Puts a router together, runs it until it is told to stop, and takes it apart."""

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import aiohttp
import structlog
from aiohttp import web

from common.discovery.registry_client import RegistryClient
from common.exits import ConfigurationError
from common.http.access import read_token, require_guard
from common.http.audit import AuditLog
from common.http.client import make_session
from common.http.serve import Address, start, stop_signals, until_stopped
from common.http.tls import Tls
from common.reload import Reloader, hangup_event
from common.settings import SettingsError
from common.tasks import TaskScope
from common.tracing import require_tracing
from router import advertise, compiled, complaints, last_table
from router.adapters import AdapterLoader
from router.control.app import Overview, make_app
from router.control.engine_metrics import EngineMetrics
from router.control.own_usage import OwnUsage
from router.control.replica_api import ReplicaApi
from router.control_socket import control_socket
from router.master import Master
from router.peers import Peers
from router.prober import ReplicaProber
from router.serves import calls_that_matter
from router.settings import RouterSettings
from router.workers import WorkerPool

log = structlog.get_logger(__name__)
TAKEN_BY_WORKERS = ("log_level", "log_json", "trace_endpoint", "trace_sample")
"""What other services are started again for: here the workers are, one after the other, and read it anew."""
LAST_SHIPMENT_S = 3.0
FIRST_ANSWER_WAIT_S = 2.0
"""How long the start waits for the registry before it serves from the last known table."""


def files_of(settings: RouterSettings) -> tuple[Path | None, ...]:
    """Files that the settings name and that are read again when they change."""
    return (
        *(settings.static_services, settings.api_keys_file, settings.replica_ca_file),
        *settings.replica_keys.values(),
        *settings.tls,
    )


async def serve(
    settings: RouterSettings,
    *,
    config: Path | None,
    reread: Callable[[], RouterSettings],
    environment: Mapping[str, str],
) -> None:
    """Run a router until it is told to stop.

    Args:
        settings: What it starts with.
        config: The settings file in use, if any; watched for changes.
        reread: Reads the settings again.
        environment: What the workers inherit.

    Raises:
        ConfigurationError: The address, a token file, the keys or the static services cannot be used.
        TaskFailed: A defect of ours.
    """
    require_guard("router", settings.host, guarded=settings.wants_keys, insecure=settings.insecure_no_auth)
    require_tracing(settings)
    tls = Tls(settings.tls)
    token = read_token(settings.registry_token_file) if settings.registry_token_file else None
    with control_socket(settings.data_dir) as control_path:
        async with (
            TaskScope("router") as scope,
            make_session(timeout_s=settings.health_timeout, limit=256, tls=tls.client) as session,
        ):
            stop = stop_signals()  # before the pool: a signal during its start must end it too
            pool = WorkerPool(settings, control_path, scope, environment)
            master = Master(settings, pool, tls)
            # Before the files are read: changes meanwhile are seen.
            reloader = make_reloader(master, config, reread, hangup_event())
            try:
                master.load_files()
            except SettingsError as error:
                raise ConfigurationError(str(error)) from error
            master.bind()
            presence = presence_of(settings, pool.port, tls.scheme)
            client = make_client(master, session, token, presence)
            await meet_peers(master, session, scope)
            overview = make_overview(master, session, client)
            app = make_app(overview, make_replica_api(settings, session, client, pool.port))
            runner = await answer_workers(app, control_path)
            prober = master.prober = make_prober(master, session)
            scope.spawn("probe", prober.run(), service=True)
            pool.adapter_wanted = AdapterLoader(session, scope, replicas=master.replicas, note=master.note_load).wanted
            scope.spawn("reach", master.watch_reach(), service=True)
            if client is not None:
                registry = RegistryClient(settings.registry_url, session, token=token)
                await follow_registry(master, client, registry, scope)
            if settings.compiled and (reason := compiled.why_not()):
                log.info("workers.not_compiled", reason=reason)
            await pool.start(master.next_table())
            scope.spawn("publish", master.publish(), service=True)
            scope.spawn("save", master.save(), service=True)
            scope.spawn("reload", reloader.run(), service=True)
            readers = [scope.spawn("traffic", overview.watch_traffic(), service=True)]
            if client is not None:
                readers += tell_registry(master, client, scope, presence)
            log.info("service.listening", what="router", host=settings.host, port=pool.port, workers=settings.workers)
            try:
                await until_stopped(scope, stop)
                overview.is_leaving = True
                await asyncio.sleep(master.settings.leave_s)
            finally:
                for reader in readers:
                    reader.cancel()  # it reads the pool's counters
                await stop_workers(master, client)
                await runner.cleanup()


def make_reloader(
    master: Master, config: Path | None, reread: Callable[[], RouterSettings], hangup: asyncio.Event
) -> Reloader[RouterSettings]:
    """What takes changed settings and files."""
    return Reloader(
        master.settings,
        reread,
        master.take,
        files=lambda settings: (config, *files_of(settings)),
        hangup=hangup,
        spared=TAKEN_BY_WORKERS,
        then=master.renew_workers,
    )


def presence_of(settings: RouterSettings, port: int, scheme: str) -> dict[str, str]:
    """What the router says of itself to the registry; nothing where it is not to."""
    return advertise.presence(settings.host, port, settings.advertise_url, scheme=scheme) if settings.advertise else {}


def make_client(
    master: Master, session: aiohttp.ClientSession, token: str | None, presence: Mapping[str, str]
) -> RegistryClient | None:
    """The registry's client, where one is followed; the last known table stands until the registry speaks.

    Raises:
        ConfigurationError: Its keys are wanted, and there is none.
    """
    settings = master.settings
    if not settings.registry_url:
        if settings.registry_keys:
            raise ConfigurationError("router: registry_keys needs a registry (--registry-url)")
        return None
    master.directory.restore(last_table.load(master.table_path))
    return RegistryClient(settings.registry_url, session, token=token, watching_as=presence)


def tell_registry(
    master: Master, client: RegistryClient, scope: TaskScope, presence: Mapping[str, str]
) -> list[asyncio.Task[None]]:
    """What tells the registry of replicas that nothing comes from, and of deployments that are asked for."""
    name = router_name(master)
    tasks = [
        scope.spawn("demand", master.deployments.tell(client, name), service=True),
        scope.spawn("usage", master.accounts.ship(client, name), service=True),
    ]
    if presence:
        complaining = complaints.tell(client, presence["router"], master.failing)
        tasks.append(scope.spawn("complaints", complaining, service=True))
    return tasks


async def stop_workers(master: Master, client: RegistryClient | None) -> None:
    """Let them drain, and the registry have what they counted to their end; else the next router of this name tells it."""
    await master.pool.stop()
    if client is not None:
        name = router_name(master)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(master.accounts.ship_now(client, name), LAST_SHIPMENT_S)
        await master.lending.call()  # nothing of keys' limits is held any more


def router_name(master: Master) -> str:
    """What it calls itself to the registry."""
    return advertise.router_name(socket.gethostname(), master.pool.port)


def make_overview(master: Master, session: aiohttp.ClientSession, client: RegistryClient | None) -> Overview:
    """What the control plane tells of `master` and its workers."""
    engines = EngineMetrics(session, master.replicas, lambda: master.tls)
    return Overview(master, master.pool.counters, engines, OwnUsage(client))


async def answer_workers(app: web.Application, control_path: str) -> web.AppRunner:
    """Listen for what workers pass on to the control plane."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.UnixSite(runner, control_path).start()
    return runner


async def meet_peers(master: Master, session: aiohttp.ClientSession, scope: TaskScope) -> None:
    """Tell other routers of this one's placements, and hear theirs.

    Raises:
        ConfigurationError: There is no token, or the port cannot be had.
    """
    settings = master.settings
    if not settings.shares:
        return
    if settings.share_token_file is None:
        raise ConfigurationError(
            "router: share_port and share_with need share_token_file, the same token at every router"
        )
    peers = Peers(master.pool.counters, master.replicas, read_token(settings.share_token_file))
    if settings.share_port:
        address = Address(settings.host, settings.share_port)
        site = await start(peers.app(), address, drain_timeout_s=0.2, what="router's shares", tls=master.own_tls)
        scope.spawn("shares", _keep(site), service=True)
    peers.follow(settings.share_with, session, scope)
    scope.spawn("peers", peers.run(), service=True)


async def _keep(site: web.AppRunner) -> None:
    """Let it listen until this is cancelled."""
    try:
        await asyncio.Event().wait()
    finally:
        await site.cleanup()


def make_prober(master: Master, session: aiohttp.ClientSession) -> ReplicaProber:
    """What asks the replicas that `master` knows."""
    settings = master.settings
    return ReplicaProber(
        session,
        master.replicas,
        master.note_probe,
        interval_s=settings.health_interval,
        timeout_s=settings.health_timeout,
        rng=random.Random(),  # noqa: S311 - jitter, not secrets
        tls=lambda: master.tls,
        is_doubted=master.is_ejected,
        calls=calls_that_matter(settings.proxy_paths),
    )


def make_replica_api(
    settings: RouterSettings, session: aiohttp.ClientSession, client: RegistryClient | None, port: int
) -> ReplicaApi | None:
    """What passes `/api/v1/*` on, where it is wanted.

    Raises:
        ConfigurationError: An admin token would be lent to callers who showed no key, or there is no registry.
    """
    if settings.replica_api_token_file is not None and not settings.wants_keys:
        raise ConfigurationError(
            "router: replica_api_token_file needs api_keys_file or registry_keys: else anybody could use the token"
        )
    if not settings.expose_replica_api:
        return None
    if client is None:
        raise ConfigurationError("router: expose_replica_api needs a registry (--registry-url)")
    token = read_token(settings.replica_api_token_file) if settings.replica_api_token_file else None
    audit = AuditLog(settings.data_dir / f"router-{port}-audit.jsonl", f"router {port}")
    return ReplicaApi(session, settings.registry_url, lambda: client.url, token, audit)


async def follow_registry(master: Master, client: RegistryClient, aside: RegistryClient, scope: TaskScope) -> None:
    """Follow its table and, where they are wanted, its keys; the latter by a client that may go to another registry.

    It is given a moment, so that a fresh start does not answer 503 with a registry at hand.
    """
    scope.spawn("follow", master.follow(client), service=True)
    answers = [master.first_answer.wait()]
    if master.settings.registry_keys:
        keys = master.take_registry_keys()
        scope.spawn("keys", keys.follow(aside), service=True)
        scope.spawn("leases", master.lending.follow(aside, router_name(master)), service=True)
        answers.append(keys.first_answer.wait())
    try:
        await asyncio.wait_for(asyncio.gather(*answers), FIRST_ANSWER_WAIT_S)
    except TimeoutError:
        log.warning("registry.silent", reason="starting from the last known table")
