"""Puts a registry together: store, catalogue, writer, watch, prober, routes; and runs it until it is told to stop."""

import asyncio
import gc
import uuid
from collections.abc import AsyncIterator

import structlog
from aiohttp import web

from common.clock import Clock, SystemClock
from common.http.access import require_guard
from common.http.client import make_session
from common.http.serve import Address, start, until_stopped
from common.service import ConfigurationError
from common.tasks import TaskScope
from registry import api, listing
from registry.api import BODY_LIMIT_BYTES, REGISTRY, Registry
from registry.catalogue import Catalogue
from registry.model import Sweep
from registry.prober import Prober
from registry.render import Renderer
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
    app = web.Application(middlewares=[api.errors], client_max_size=BODY_LIMIT_BYTES)

    async def running(app: web.Application) -> AsyncIterator[None]:
        async with (
            make_session(timeout_s=settings.health_timeout, limit=settings.probe_concurrency) as session,
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
                    clock,
                    interval_s=settings.health_interval,
                    concurrency=settings.probe_concurrency,
                )
                prober.begin(loaded.instances)
                writer.listeners += [hub.publish, prober.notice]
                app[REGISTRY] = Registry(catalogue, writer, renderer, hub, prober, clock.monotonic())
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
    app.add_routes(
        [
            web.get("/health", api.health),
            web.get("/services", listing.list_services),
            web.post("/services", api.register),
            web.get("/services/{name}", api.get_service),
            web.put("/services/{name}", api.update),
            web.delete("/services/{name}", api.deregister),
            web.post("/services/{name}/heartbeat", api.heartbeat),
            web.post("/services/{name}/drain", api.drain),
            web.post("/services/{name}/undrain", api.drain),
            web.get("/services/{name}/health", api.probe_now),
            web.get("/stats", api.stats),
            web.get("/v1/watch", listing.watch),
        ]
    )
    return app


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


async def serve(settings: RegistrySettings) -> None:
    """Run a registry until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: It may not, or cannot, serve with these settings.
        TaskFailed: A task ended that must not.
    """
    require_guard("registry", settings.host, guarded=False, insecure=settings.insecure_no_auth)
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
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        await until_stopped(app[SCOPE])
    finally:
        await runner.cleanup()
