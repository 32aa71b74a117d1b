"""How the registry is, in words, in numbers, and for Prometheus."""

from aiohttp import web

from common import __version__
from common.paced import paced
from common.wire.registry import RegistryHealth, RegistryStats, ReplicasHealth
from registry.http.context import REGISTRY, Registry, answer, long_answer
from registry.views.census import census
from registry.views.render import encode_json, json_array
from registry.views.targets import target, watching


async def health(request: web.Request) -> web.Response:
    """`GET /health`."""
    registry = request.app[REGISTRY]
    catalogue = registry.catalogue
    total, ready = count_replicas(registry)
    return answer(
        RegistryHealth(
            registered_services=len(catalogue),
            healthy_services=catalogue.healthy,
            timestamp=registry.renderer.timestamp(),
            epoch=catalogue.epoch,
            revision=catalogue.revision,
            self_preservation=catalogue.preserving_since is not None,
            store="unavailable" if registry.writer.away else "ok",
            version=__version__,
            replicas_total=total,
            replicas_ready=ready,
        )
    )


async def replicas_health(request: web.Request) -> web.Response:
    """`GET /api/v1/health`."""
    registry = request.app[REGISTRY]
    total, ready = count_replicas(registry)
    timestamp = registry.renderer.timestamp()
    return answer(ReplicasHealth(version=__version__, timestamp=timestamp, replicas_total=total, replicas_ready=ready))


def count_replicas(registry: Registry) -> tuple[int, int]:
    """How many replicas there are, those made a moment ago among them, and how many are ready."""
    unreported = sum(replica_id not in registry.index for replica_id in registry.created.recent())
    return len(registry.index) + unreported, registry.index.ready


async def stats(request: web.Request) -> web.Response:
    """`GET /stats`."""
    registry = request.app[REGISTRY]
    counted = await census(registry.catalogue)
    total, healthy = len(registry.catalogue), registry.catalogue.healthy
    return answer(
        RegistryStats(
            total_services=total,
            healthy_services=healthy,
            unhealthy_services=total - healthy,
            status_distribution=counted.statuses,
            host_distribution=counted.hosts,
            uptime=round(registry.writer.clock.monotonic() - registry.started_at, 3),
            timestamp=registry.renderer.timestamp(),
            watchers=len(registry.hub),
            suspect_services=counted.suspect,
        )
    )


async def metrics(request: web.Request) -> web.Response:
    """`GET /metrics`."""
    registry = request.app[REGISTRY]
    return web.Response(body=await registry.metrics.scrape(), headers={"Content-Type": registry.metrics.content_type})


async def prometheus_targets(request: web.Request) -> web.Response:
    """`GET /sd/prometheus`."""
    registry = request.app[REGISTRY]
    groups = [encode_json(group) for group in watching(registry.routers, request.host)]
    entries = paced(list(registry.catalogue))
    groups += [encode_json(group) async for entry in entries if (group := target(entry.instance))]
    return long_answer(await json_array(groups))
