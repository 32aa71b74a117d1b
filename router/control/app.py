"""The control plane's routes: parse, ask the overview, render."""

import time
from typing import Any, Protocol

from aiohttp import web

from common.http.errors import ApiError, json_errors
from router import board as cells
from router.board import Board
from router.control import metrics, views
from router.model import Replica
from router.settings import RouterSettings


class Fleet(metrics.Source, Protocol):
    """What the control plane needs of the master."""

    settings: RouterSettings


class Overview:
    """Reads the master's state and the board for the handlers.

    Args:
        fleet: The master.
        board: The counters.
    """

    def __init__(self, fleet: Fleet, board: Board) -> None:
        self._fleet = fleet
        self._board = board

    @property
    def registry_url(self) -> str:
        """The registries, as configured."""
        return ",".join(self._fleet.settings.registry_url)

    def health(self) -> dict[str, Any]:
        """`/health` and `/status`."""
        return views.health(self._fleet.replicas(), self.registry_url, self._fleet.registry_error, time.time())

    def services(self) -> list[dict[str, Any]]:
        """Every replica with its counters."""
        return [views.service(replica, self._counts(replica)) for replica in self._fleet.replicas()]

    def models(self) -> dict[str, Any]:
        """The OpenAI list."""
        return views.model_list(self._fleet.replicas())

    def metrics_page(self) -> bytes:
        """Prometheus' text."""
        return metrics.RouterCollector(self._fleet, self._board).page()

    def _counts(self, replica: Replica) -> views.Counts:
        requests = self._board.total(replica.slot, cells.REQUESTS)
        _, seconds = self._board.histogram(replica.slot, cells.DURATION)
        return views.Counts(
            requests=requests,
            errors=self._board.total(replica.slot, cells.ERRORS),
            in_flight=self._board.total(replica.slot, cells.IN_FLIGHT),
            response_time_s=seconds / requests if requests else 0.0,
        )


OVERVIEW: web.AppKey[Overview] = web.AppKey("overview", Overview)


def make_app(overview: Overview) -> web.Application:
    """The control plane as an aiohttp application."""
    app = web.Application(middlewares=[json_errors])
    app[OVERVIEW] = overview
    app.router.add_get("/", _health)
    app.router.add_get("/health", _health)
    app.router.add_get("/status", _health)
    app.router.add_get("/services", _services)
    app.router.add_get("/stats", _stats)
    app.router.add_get("/metrics", _metrics)
    for prefix in ("", "/v1"):
        app.router.add_get(f"{prefix}/models", _models)
        app.router.add_get(prefix + "/models/{model:.+}", _model)
    return app


async def _health(request: web.Request) -> web.Response:
    """How many replicas are healthy, and whether the registry is followed."""
    return web.json_response(request.app[OVERVIEW].health())


async def _services(request: web.Request) -> web.Response:
    """Every replica with its health, models and counts."""
    overview = request.app[OVERVIEW]
    services = overview.services()
    return web.json_response({"services": services, "total": len(services), "registry_url": overview.registry_url})


async def _stats(request: web.Request) -> web.Response:
    """The same, with totals."""
    overview = request.app[OVERVIEW]
    services = overview.services()
    return web.json_response(
        {
            "total_services": len(services),
            "healthy_services": sum(item["healthy"] for item in services),
            "registry_url": overview.registry_url,
            "services": services,
        }
    )


async def _metrics(request: web.Request) -> web.Response:
    """For Prometheus."""
    page = request.app[OVERVIEW].metrics_page()
    return web.Response(body=page, headers={"Content-Type": metrics.CONTENT_TYPE})


async def _models(request: web.Request) -> web.Response:
    """The models that can be asked now."""
    return web.json_response(request.app[OVERVIEW].models())


async def _model(request: web.Request) -> web.Response:
    """One of them; 404 when no healthy replica serves it."""
    wanted = request.match_info["model"]
    for model in request.app[OVERVIEW].models()["data"]:
        if model["id"] == wanted:
            return web.json_response(model)
    raise ApiError(404, f"no healthy replica serves the model {wanted!r}")
