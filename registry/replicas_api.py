"""Reading the fleet's replicas over HTTP: `/v1/replicas`, and `/api/v1/replicas` as the release server has it."""

from aiohttp import web

from common import __version__
from common.discovery.replica import FILTERS, select
from registry.api import REGISTRY, answer, count_replicas
from registry.fleet_api import known_infos
from registry.listing import wait_for_news


async def list_replicas(request: web.Request) -> web.Response:
    """`GET /api/v1/replicas[?server_mode=…][&status=…][&model_name=…]`, and the same at `/v1/replicas` with long poll."""
    await wait_for_news(request)
    catalogue = request.app[REGISTRY].catalogue
    wanted = {key: request.query[key] for key in FILTERS if key in request.query}
    found = select(known_infos(request.app[REGISTRY]).values(), wanted)
    headers = {"X-Index": str(catalogue.revision), "X-Epoch": catalogue.epoch}
    return answer({"total": len(found), "replicas": found}, headers=headers)


async def health(request: web.Request) -> web.Response:
    """`GET /api/v1/health`."""
    registry = request.app[REGISTRY]
    stamp = {"version": __version__, "timestamp": registry.renderer.timestamp()}
    return answer({"status": "healthy", **stamp, **count_replicas(registry)})
