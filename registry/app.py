"""Puts a registry together: store, catalogue, writer, watch, prober, routes; and runs it until it is told to stop."""

import asyncio
import gc
import resource
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import structlog
from aiohttp import web

from common.clock import Clock, SystemClock
from common.discovery.limits import BODY_LIMIT_BYTES
from common.exits import ConfigurationError
from common.http.access import is_loopback
from common.http.audit import AuditLog
from common.http.serve import Address, explain_bind, start, stop_serving, until_stopped
from common.http.tls import Tls, read_ca
from common.names import bind_address
from common.paced import paced
from common.reload import Reloader, hangup_event
from common.tasks import TaskScope
from registry.access import address_policy, agent_token_of, files_of, guard_of
from registry.choose_store import make_store
from registry.core.catalogue import Catalogue
from registry.core.model import Sweep
from registry.core.pacing import UNKNOWN_FOR_S, Pace
from registry.core.store import Loaded, Store, StoreError
from registry.core.writer import Writer
from registry.deployments.keeper import Keeper
from registry.fleet.agents import AgentClient
from registry.fleet.created import NewReplicas
from registry.fleet.doubts import Doubts
from registry.fleet.index import FleetIndex
from registry.fleet.routers import Routers
from registry.http.context import REGISTRY, ConnectionLimit, Registry
from registry.http.guard import Guard
from registry.http.middleware import errors
from registry.http.quick import QuickHeartbeats
from registry.http.routes import add_routes
from registry.keys.book import KeyBook
from registry.keys.lender import FleetLender
from registry.outbound.addresses import AddressPolicy
from registry.outbound.relay import PageRelay
from registry.outbound.sessions import GuardedResolver, agent_session, probe_session
from registry.probes.prober import HealthProber
from registry.reload import put_in_force
from registry.settings import RegistrySettings
from registry.usage.book import UsageBook
from registry.views.metrics import Metrics
from registry.views.render import Renderer
from registry.views.watch import WatchHub

log = structlog.get_logger(__name__)
SWEEP_S = 1.0
SWEEP_REST_S = 200e-6
"""Between two sweeps for each record: two hundred times what a look at its lease takes."""
PACE_S = 5.0
PACE_REST_S = 1e-3
"""Between two counts of who beats here, for each record: a thousand times what a look at it takes."""
ACCEPTERS = 16
GC_THRESHOLDS = (20_000, 20, 50)
"""Ten thousand records are half a million objects without a cycle among them; walking them all costs 0.1 s."""
SCOPE = web.AppKey("scope", TaskScope)


@dataclass(frozen=True, slots=True)
class _Given:
    """What a registry is told as it begins, judged."""

    settings: RegistrySettings
    store: Store
    clock: Clock
    tls: Tls
    guard: Guard
    policy: AddressPolicy


@dataclass(frozen=True, slots=True)
class _Outside:
    """What a registry asks others with."""

    resolver: GuardedResolver
    probes: aiohttp.ClientSession
    relay: PageRelay
    agents: AgentClient


def make_app(
    settings: RegistrySettings, store: Store, *, clock: Clock | None = None, tls: Tls | None = None
) -> web.Application:
    """The registry as an application; its store is opened when the application starts and closed when it ends."""
    tls = tls or Tls()
    given = _Given(settings, store, clock or SystemClock(), tls, guard_of(settings), address_policy(settings))
    agent_token = agent_token_of(settings)
    replica_tls = tls.context(read_ca(settings.replica_ca_file), verify=settings.replica_tls_verify)
    app = web.Application(middlewares=[errors], client_max_size=BODY_LIMIT_BYTES)

    async def running(app: web.Application) -> AsyncIterator[None]:
        resolver = GuardedResolver(given.policy)
        async with (
            probe_session(resolver, replica_tls) as session,
            aclosing(PageRelay(resolver, tls.client)) as relay,
            agent_session(resolver, tls.client) as agents,
            TaskScope("registry") as scope,
        ):
            loaded = await store.open()
            try:
                outside = _Outside(resolver, session, relay, AgentClient(agents, agent_token))
                registry = _put_together(given, loaded, outside, scope)
                app[REGISTRY], app[SCOPE] = registry, scope
                _spawn_services(scope, registry, follows=store.shared, sweep_s=settings.cleanup_interval)
                log.info("registry.loaded", services=len(registry.catalogue), epoch=registry.catalogue.epoch)
                yield
            finally:
                await scope.close()
                await store.close()

    async def end_watches(app: web.Application) -> None:
        app[REGISTRY].hub.close()
        app[REGISTRY].keeper.shown.close()
        app[REGISTRY].keys.close()

    app.cleanup_ctx.append(running)
    app.on_shutdown.append(end_watches)
    add_routes(app)
    return app


def _put_together(given: _Given, loaded: Loaded, outside: _Outside, scope: TaskScope) -> Registry:
    """All parts, of what the store had."""
    settings, store, clock = given.settings, given.store, given.clock
    catalogue = Catalogue(epoch=uuid.uuid4().hex, shared=store.shared, capacity=settings.max_services)
    catalogue.load(loaded.instances, clock.monotonic(), generation_floor=loaded.generation_floor)
    renderer = Renderer(catalogue, clock)
    hub = WatchHub(catalogue, renderer, limit=settings.max_watchers)
    writer = Writer(catalogue, store, clock)
    prober = _make_prober(settings, writer, outside.probes, clock)
    prober.begin(loaded.instances)
    index = FleetIndex()
    index.begin(loaded.instances)
    routers = Routers(clock)
    keeper = Keeper(store=store, index=index, writer=writer, agents=outside.agents, clock=clock, scope=scope)
    keeper.take(hand_over=settings.hand_over)
    keys = KeyBook(store.documents)
    ages = {"hours_days": settings.usage_hours_days, "days": settings.usage_days}
    metrics = Metrics(catalogue, writer, hub, routers, keeper.tally, tls=given.tls)
    writer.listeners += [hub.publish, prober.notice, index.notice, metrics.notice]
    return Registry(
        catalogue=catalogue,
        writer=writer,
        renderer=renderer,
        hub=hub,
        prober=prober,
        metrics=metrics,
        guard=given.guard,
        addresses=given.policy,
        connections=ConnectionLimit(settings.max_connections),
        relay=outside.relay,
        routers=routers,
        doubts=Doubts(clock),
        on_loopback=is_loopback(settings.host),
        agents=outside.agents,
        index=index,
        created=NewReplicas(clock),
        keeper=keeper,
        keys=keys,
        lender=FleetLender(store.documents, keys, clock, lambda: keeper.fence),
        clock=clock,
        usage=UsageBook(store.documents, clock, lambda: keeper.fence, **ages),
        resolver=outside.resolver,
        tls=given.tls,
        audit=AuditLog(settings.data_dir / "registry-audit.jsonl", "registry"),
        started_at=clock.monotonic(),
        pace=_make_pace(settings, clock, unknown=store.shared and len(catalogue) > 0),
    )


def _make_pace(settings: RegistrySettings, clock: Clock, *, unknown: bool) -> Pace:
    known_at = clock.monotonic() + (UNKNOWN_FOR_S if unknown else 0.0)
    return Pace(settings.max_heartbeats_per_second, known_at, None if unknown else 0)


def _make_prober(
    settings: RegistrySettings, writer: Writer, session: aiohttp.ClientSession, clock: Clock
) -> HealthProber:
    return HealthProber(
        writer,
        session,
        clock,
        interval_s=settings.health_interval,
        timeout_s=settings.health_timeout,
        concurrency=settings.probe_concurrency,
    )


def _spawn_services(scope: TaskScope, registry: Registry, *, follows: bool, sweep_s: float) -> None:
    """Start what runs beside requests; `follows` when other registries write to the same store."""
    writer = registry.writer
    scope.spawn("deployments", registry.keeper.run(), service=True)
    scope.spawn("keys", registry.keys.run(), service=True)
    scope.spawn("usage", registry.usage.run(), service=True)
    scope.spawn("leases", registry.lender.run(), service=True)
    scope.spawn("writer", writer.run(), service=True)
    if follows:
        scope.spawn("follower", writer.follow(), service=True)
    scope.spawn("prober", registry.prober.run(), service=True)
    scope.spawn("sweeper", sweep(writer, min(SWEEP_S, sweep_s)), service=True)
    scope.spawn("pace", keep_pace(registry), service=True)


async def sweep(writer: Writer, interval_s: float) -> None:
    """Let leases end, every `interval_s`, and less often where there are very many."""
    preserving, due = False, 0.0
    while True:
        await asyncio.sleep(interval_s)
        try:
            more = time.monotonic() >= due
            while more:
                swept = (await writer.submit(Sweep())).swept
                more = swept is not None and swept.more
                due = time.monotonic() + len(writer.catalogue) * SWEEP_REST_S
                await asyncio.sleep(0)
            if not writer.away:
                await writer.rewrite()
        except StoreError as error:
            log.warning("sweep.store_failed", reason=str(error))
        if (now := writer.catalogue.preserving_since is not None) != preserving:
            preserving = now
            log.warning("registry.self_preservation", on=preserving, services=len(writer.catalogue))


async def keep_pace(registry: Registry) -> None:
    """Judge every `PACE_S` how far apart heartbeats shall be, and less often where there are very many."""
    pace, clock = registry.pace, registry.clock
    while True:
        now, told_s, beating = clock.monotonic(), pace.interval_s or 0, 0
        async for entry in paced(list(registry.catalogue)):
            beating += entry.beats(now)
        pace.judge(beating, now)
        if (pace.interval_s or 0) != told_s:
            log.info("registry.paced", heartbeat_interval_s=pace.interval_s, before_s=told_s)
        await asyncio.sleep(max(PACE_S, len(registry.catalogue) * PACE_REST_S))


async def count_connections(limit: ConnectionLimit, runner: web.AppRunner) -> None:
    """Keep the count of open connections fresh."""
    while True:
        await asyncio.sleep(SWEEP_S)
        limit.count = len(runner.server.connections) if runner.server else 0


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: every watcher and every client is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def require_free(address: Address) -> None:
    """Look at the port before the store is opened: who starts a registry twice shall hear of the port, not of a lock.

    Raises:
        ConfigurationError: It is taken; names by whom.
    """
    host = bind_address(address.host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, address.port), family=family).close()
    except OSError as error:
        raise ConfigurationError(explain_bind(error, address, "registry")) from error


async def serve(settings: RegistrySettings, *, config: Path | None, reread: Callable[[], RegistrySettings]) -> None:
    """Run a registry until SIGTERM or SIGINT.

    Args:
        settings: What it starts with.
        config: The settings file in use, if any; watched for changes, like the token files.
        reread: Reads the settings again.

    Raises:
        ConfigurationError: It may not, or cannot, serve with these settings.
        TaskFailed: A task ended that must not.
    """
    gc.set_threshold(*GC_THRESHOLDS)
    raise_file_limit()
    require_free(Address(settings.host, settings.port))
    tls = Tls(settings.tls)
    app = make_app(settings, make_store(settings), tls=tls)
    reloader = Reloader(
        settings,
        reread,
        lambda changed: put_in_force(app[REGISTRY], changed),  # it is there once the application has started
        files=lambda now: (config, *files_of(now), *now.tls),
        hangup=hangup_event(),
    )
    try:
        runner = await start(
            app,
            Address(settings.host, settings.port),
            drain_timeout_s=settings.drain_timeout_s,
            what="registry",
            tls=tls,
            quick=QuickHeartbeats(app),
            accepters=ACCEPTERS,
        )
    except StoreError as error:
        raise ConfigurationError(str(error)) from error
    app[SCOPE].spawn("connections", count_connections(app[REGISTRY].connections, runner), service=True)
    app[SCOPE].spawn("reload", reloader.run(), service=True)
    gc.collect()
    gc.freeze()
    try:
        await until_stopped(app[SCOPE])
    finally:
        await stop_serving(runner)
