"""What the babysitter answers at port + 1: the contract's three read-only calls."""

import time
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web

from babysitter import view as pictures
from babysitter.machine import State
from babysitter.supervisor import Supervisor
from common.http.errors import ApiError, json_errors


@dataclass(frozen=True, slots=True)
class Source:
    """Where the answers come from."""

    supervisor: Supervisor
    router_url: str | None
    started: float


SOURCE: web.AppKey[Source] = web.AppKey("source", Source)


def make_app(source: Source) -> web.Application:
    """The babysitter's application."""
    app = web.Application(client_max_size=1 << 16, middlewares=[json_errors])
    app[SOURCE] = source
    app.router.add_get("/health", health)
    app.router.add_get("/models", models)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/info", info)
    return app


async def health(request: web.Request) -> web.Response:
    """`GET /health`: 200 while the babysitter runs; the body tells how the server is."""
    return web.json_response(pictures.health(request.app[SOURCE].supervisor.view(), time.time()))


async def models(request: web.Request) -> web.Response:
    """`GET /models`: the server's models, 503 until it is ready."""
    view = request.app[SOURCE].supervisor.view()
    if view.state is not State.READY:
        raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, f"the server is not ready: {view.status}")
    return web.json_response(pictures.model_list(view))


async def info(request: web.Request) -> web.Response:
    """`GET /info`."""
    source = request.app[SOURCE]
    uptime_s = round(time.monotonic() - source.started, 3)
    return web.json_response(pictures.info(source.supervisor.view(), uptime_s=uptime_s, router_url=source.router_url))
