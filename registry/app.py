"""Puts a registry together: store, catalogue, writer, watch, prober, routes; and runs it until it is told to stop."""

import asyncio
import gc
import resource
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing

import structlog
from aiohttp import web

from common.clock import Clock, SystemClock
from common.http.access import is_loopback, require_guard
from common.http.serve import Address, explain_bind, start, until_stopped
from common.service import ConfigurationError
from common.tasks import TaskScope
from registry import api
from registry.addresses import LOOPBACK, PRIVATE, AddressPolicy, networks
from registry.api import BODY_LIMIT_BYTES, REGISTRY, Crowd, Registry
from registry.catalogue import Catalogue
from registry.guard import make_guard
from registry.metrics import Metrics
from registry.model import Sweep
from registry.prober import GuardedResolver, Prober, https_session
from registry.relay import Relay
from registry.render import Renderer
from registry.routers import Routers
from registry.routes import add_routes
from registry.settings import RegistrySettings
from registry.store import Store, StoreError
from registry.store.choose import make_store
from registry.watch import WatchHub
from registry.writer import Writer

log = structlog.get_logger(__name__)
SWEEP_S = 1.0
GC_THRESHOLDS = (20_000, 20, 50)
"""Ten thousand records are half a million objects without a cycle among them; walking them all costs 0.1 s."""
SCOPE = web.AppKey("scope", TaskScope)


def make_app(settings: RegistrySettings, store: Store, *, clock: Clock | None = None) -> web.Application:
    """The registry as an application; its store is opened when the application starts and closed when it ends."""
    clock = clock or SystemClock()
    policy = address_policy(settings)
    guard = make_guard(settings.read_token_file, settings.register_token_file, settings.admin_token_file)
    app = web.Application(middlewares=[api.errors], client_max_size=BODY_LIMIT_BYTES)

    async def running(app: web.Application) -> AsyncIterator[None]:
        resolver = GuardedResolver(policy)
        async with (
            https_session(resolver) as session,
            aclosing(Relay(resolver)) as relay,
            TaskScope("registry") as scope,
        ):
            loaded = await store.open()
            try:
                catalogue = Catalogue(epoch=uuid.uuid4().hex, shared=store.shared, capacity=settings.max_services)
                catalogue.load(loaded.instances, clock.monotonic(), generation_floor=loaded.generation_floor)
                renderer = Renderer(catalogue, clock)
                hub = WatchHub(catalogue, renderer, limit=settings.max_watchers)
                writer = Writer(catalogue, store, clock)
                prober = Prober(
                    writer,
                    session,
                    resolver,
                    clock,
                    interval_s=settings.health_interval,
                    timeout_s=settings.health_timeout,
                    concurrency=settings.probe_concurrency,
                )
                prober.begin(loaded.instances)
                routers = Routers(policy, clock)
                metrics = Metrics(catalogue, writer, hub, routers)
                writer.listeners += [hub.publish, prober.notice, metrics.notice]
                app[REGISTRY] = Registry(
                    catalogue=catalogue,
                    writer=writer,
                    renderer=renderer,
                    hub=hub,
                    prober=prober,
                    metrics=metrics,
                    guard=guard,
                    addresses=policy,
                    crowd=Crowd(settings.max_connections),
                    relay=relay,
                    routers=routers,
                    local=is_loopback(settings.host) and not guard.grants,
                    started_at=clock.monotonic(),
                )
                app[SCOPE] = scope
                scope.spawn("writer", writer.run(), service=True)
                if store.shared:
                    scope.spawn("follower", writer.follow(), service=True)
                scope.spawn("prober", prober.run(), service=True)
                scope.spawn("sweeper", sweep(writer, min(SWEEP_S, settings.cleanup_interval)), service=True)
                log.info("registry.loaded", services=len(catalogue), epoch=catalogue.epoch)
                yield
            finally:
                await scope.close()
                await store.close()

    async def end_watches(app: web.Application) -> None:
        app[REGISTRY].hub.close()

    app.cleanup_ctx.append(running)
    app.on_shutdown.append(end_watches)
    add_routes(app)
    return app


def address_policy(settings: RegistrySettings) -> AddressPolicy:
    """What may be registered: private networks, and loopback where the registry itself is on loopback.

    Raises:
        ConfigurationError: An allowed network is none.
    """
    local = is_loopback(settings.host) or settings.insecure_no_auth
    chosen = settings.allowed_networks or (PRIVATE + LOOPBACK if local else PRIVATE)
    try:
        allowed = networks(chosen)
    except ValueError as error:
        raise ConfigurationError(f"--allowed-networks: {error}") from error
    return AddressPolicy(
        allowed, frozenset(settings.allowed_hosts), settings.lowest_port, own=(settings.host, settings.port)
    )


async def sweep(writer: Writer, interval_s: float) -> None:
    """Let leases end, every `interval_s`."""
    preserving = False
    while True:
        await asyncio.sleep(interval_s)
        try:
            await writer.submit(Sweep())
            if not writer.away:
                await writer.rewrite()
        except StoreError as error:
            log.warning("sweep.store_failed", reason=str(error))
        if (now := writer.catalogue.preserving_since is not None) != preserving:
            preserving = now
            log.warning("registry.self_preservation", on=preserving, services=len(writer.catalogue))


async def count_connections(crowd: Crowd, runner: web.AppRunner) -> None:
    """Keep the count of open connections fresh."""
    while True:
        await asyncio.sleep(SWEEP_S)
        crowd.connections = len(runner.server.connections) if runner.server else 0


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: every watcher and every client is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def require_free(address: Address) -> None:
    """Look at the port before the store is opened: who starts a registry twice shall hear of the port, not of a lock.

    Raises:
        ConfigurationError: It is taken; names by whom.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        socket.create_server((address.host, address.port), family=family).close()
    except OSError as error:
        raise ConfigurationError(explain_bind(error, address, "registry")) from error


async def serve(settings: RegistrySettings) -> None:
    """Run a registry until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: It may not, or cannot, serve with these settings.
        TaskFailed: A task ended that must not.
    """
    guarded = bool(settings.read_token_file or settings.register_token_file or settings.admin_token_file)
    require_guard("registry", settings.host, guarded=guarded, insecure=settings.insecure_no_auth)
    raise_file_limit()
    require_free(Address(settings.host, settings.port))
    app = make_app(settings, make_store(settings.store, settings.data_dir))
    try:
        runner = await start(
            app,
            Address(settings.host, settings.port),
            drain_timeout_s=settings.drain_timeout,
            what="registry",
        )
    except StoreError as error:
        raise ConfigurationError(str(error)) from error
    app[SCOPE].spawn("crowd", count_connections(app[REGISTRY].crowd, runner), service=True)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        await until_stopped(app[SCOPE])
    finally:
        await runner.cleanup()
