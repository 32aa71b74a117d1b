"""The control plane's routes: parse, ask the overview, render."""

import asyncio
import time
from http import HTTPStatus
from typing import Any, Protocol

from aiohttp import web

from common.clock import now_iso
from common.http.answers import json_answer
from common.http.errors import ApiError, Handler, json_errors
from router.control import metrics, views
from router.control.replica_api import BODY_LIMIT_BYTES, ReplicaApi
from router.control.traffic import SAMPLE_S, Traffic, TrafficSample
from router.counters import DURATION, EJECTIONS, ERRORS, IN_FLIGHT, REQUESTS, SharedCounters
from router.model import Replica
from router.outlier import TOLD
from router.proxy import answers
from router.settings import RouterSettings


class MasterState(metrics.MetricsSource, Protocol):
    """What the control plane needs of the master."""

    settings: RouterSettings


class Overview:
    """Reads the master's state and the counters for the handlers.

    Args:
        fleet: The master.
        counters: The counters.
    """

    def __init__(self, fleet: MasterState, counters: SharedCounters) -> None:
        self._fleet = fleet
        self._counters = counters
        self._traffic = Traffic()

    @property
    def registry_url(self) -> str:
        """The registries, as configured."""
        return ",".join(self._fleet.settings.registry_url)

    def health(self) -> dict[str, Any]:
        """`/health` and `/status`."""
        return views.health(
            self._fleet.replicas(),
            self.registry_url,
            self._fleet.registry_error,
            now_iso(),
            left_out=self._fleet.left_out(),
        )

    def services(self) -> list[dict[str, Any]]:
        """Every replica with its counters."""
        unreachable = self._fleet.unreachable()
        return [
            views.service(replica, self._counts(replica), unreachable.get(replica.name))
            for replica in self._fleet.replicas()
        ]

    def models(self) -> dict[str, Any]:
        """The OpenAI list."""
        rules = self._fleet.settings.model_rules()
        return views.model_list(self._fleet.replicas(), {name: rules.find(name).split for name in rules.aliases()})

    def metrics_page(self) -> bytes:
        """Prometheus' text."""
        return metrics.RouterCollector(self._fleet, self._counters).page()

    async def watch_traffic(self) -> None:
        """TrafficSample the counters for ever, so that whoever looks at the traffic sees where it comes from."""
        while True:
            rows = {replica.id: self._counters.row(replica.slot) for replica in self._fleet.replicas()}
            queue = self._counters.row(self._counters.shape.slots)
            self._traffic.add(TrafficSample(time.time(), time.monotonic(), rows, queue))
            await asyncio.sleep(SAMPLE_S)

    def traffic(self, since: float) -> dict[str, Any]:
        """`/traffic`: points later than `since`, and every replica as it is now."""
        now = time.monotonic()
        return {
            "interval_s": SAMPLE_S,
            "points": self._traffic.since(since),
            "workers": self._fleet.workers_alive(),
            "connections": self._fleet.connections(),
            "registry_error": self._fleet.registry_error,
            "replicas": [
                {
                    "name": replica.name,
                    "standing": replica.eligibility.value,
                    "static": replica.static,
                    "in_flight": self._counters.total(replica.slot, IN_FLIGHT),
                    "ejections": self._counters.total(replica.slot, EJECTIONS),
                    "ejected": self._counters.ejected_until_s(replica.slot) > now,
                    **self._traffic.replicas.get(replica.id, {"requests_s": 0.0, "errors_s": 0.0}),
                }
                for replica in self._fleet.replicas()
            ],
        }

    def _counts(self, replica: Replica) -> views.Counts:
        why = metrics.why_set_aside(self._counters, replica.slot)
        requests = self._counters.total(replica.slot, REQUESTS)
        _, seconds = self._counters.histogram(replica.slot, DURATION)
        return views.Counts(
            requests=requests,
            errors=self._counters.total(replica.slot, ERRORS),
            in_flight=self._counters.total(replica.slot, IN_FLIGHT),
            response_time_s=seconds / requests if requests else 0.0,
            set_aside=TOLD[why] if why is not None else None,
        )


OVERVIEW: web.AppKey[Overview] = web.AppKey("overview", Overview)


def make_app(overview: Overview, replica_api: ReplicaApi | None = None) -> web.Application:
    """The control plane as an aiohttp application; `/api/v1/*` is there when `replica_api` is given."""
    app = web.Application(middlewares=[json_errors, _model_errors], client_max_size=BODY_LIMIT_BYTES)
    if replica_api is not None:
        app.router.add_route("*", "/api/v1/{path:.+}", replica_api.handle)
    app[OVERVIEW] = overview
    app.router.add_get("/", _health)
    app.router.add_get("/health", _health)
    app.router.add_get("/status", _health)
    app.router.add_get("/services", _services)
    app.router.add_get("/stats", _stats)
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/traffic", _traffic)
    for prefix in ("", "/v1"):
        app.router.add_get(f"{prefix}/models", _models)
        app.router.add_get(prefix + "/models/{model:.+}", _model)
    return app


@web.middleware
async def _model_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors about models as both official clients read them: OpenAI's and Anthropic's ask the same paths."""
    try:
        return await handler(request)
    except (ApiError, web.HTTPException) as error:
        if not request.path.startswith(("/v1/models", "/models")) or error.status < HTTPStatus.BAD_REQUEST:
            raise
        if isinstance(error, ApiError):
            told = answers.error(error.status, "model_not_found", error.message)
        else:
            told = answers.error(error.status, "bad_request", error.reason)
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return json_answer({"type": "error", **told}, status=error.status, headers=headers)


async def _health(request: web.Request) -> web.Response:
    """How many replicas are healthy, and whether the registry is followed."""
    return json_answer(request.app[OVERVIEW].health())


async def _services(request: web.Request) -> web.Response:
    """Every replica with its health, models and counts."""
    overview = request.app[OVERVIEW]
    services = overview.services()
    return json_answer({"services": services, "total": len(services), "registry_url": overview.registry_url})


async def _stats(request: web.Request) -> web.Response:
    """The same, with totals."""
    overview = request.app[OVERVIEW]
    services = overview.services()
    return json_answer(
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


async def _traffic(request: web.Request) -> web.Response:
    text = request.query.get("since", "0")
    try:
        since = float(text)
    except ValueError as error:
        raise ApiError(400, "parameter 'since' must be a number", field="since") from error
    return json_answer(request.app[OVERVIEW].traffic(since))


async def _models(request: web.Request) -> web.Response:
    """The models that can be asked now."""
    return json_answer(request.app[OVERVIEW].models())


async def _model(request: web.Request) -> web.Response:
    """One of them; 404 when no healthy replica serves it."""
    wanted = request.match_info["model"]
    for model in request.app[OVERVIEW].models()["data"]:
        if model["id"] == wanted:
            return json_answer(model)
    raise ApiError(404, f"no healthy replica serves the model {wanted!r}")
