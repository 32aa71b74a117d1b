"""The control plane's routes: parse, ask the overview, render."""

import asyncio
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote

import msgspec
from aiohttp import web

from common.clock import now_iso
from common.http import openapi
from common.http.errors import ApiError, Handler, json_errors
from common.http.openapi import Parameter, Route
from common.wire.base import JsonObject, Message
from common.wire.models import ModelList
from common.wire.router import (
    ModelFault,
    ReplicaTraffic,
    RoutedService,
    RoutedServices,
    RouterHealth,
    RouterReadiness,
    RouterStats,
    Traffic,
)
from common.wire.usage import UsageReport
from router.control import metrics, views
from router.control.engine_metrics import EngineMetrics
from router.control.own_usage import OwnUsage
from router.control.replica_api import BODY_LIMIT_BYTES, ReplicaApi
from router.control.traffic import SAMPLE_REST_S, SAMPLE_S, KeyRates, TrafficHistory, TrafficSample
from router.counters import DURATION, EJECTIONS, ERRORS, IN_FLIGHT, REQUESTS, SharedCounters
from router.model import Replica
from router.outlier import TOLD
from router.proxy import answers
from router.proxy.paths import KEY_FIELD, SEES_FIELD
from router.settings import RouterSettings


class MasterState(metrics.MetricsSource, Protocol):
    """What the control plane needs of the master."""

    settings: RouterSettings


class Overview:
    """Reads the master's state and the counters for the handlers.

    Args:
        fleet: The master.
        counters: The counters.
        engines: Asks the engines for their metrics.
        own_usage: Asks the registry for what a key used.
    """

    def __init__(
        self, fleet: MasterState, counters: SharedCounters, engines: EngineMetrics, own_usage: OwnUsage
    ) -> None:
        self.engines = engines
        self.own_usage = own_usage
        self._fleet = fleet
        self._counters = counters
        self._traffic = TrafficHistory()
        self._interval_s = SAMPLE_S
        self._keys = KeyRates()
        self.is_leaving = False
        """It was told to stop, and waits until nobody new comes."""

    @property
    def registry_url(self) -> str:
        """The registries, as configured."""
        return ",".join(self._fleet.settings.registry_url)

    def health(self) -> RouterHealth:
        """`/health` and `/status`."""
        return views.health(
            self._fleet.replicas(),
            self.registry_url,
            self._fleet.registry_error,
            now_iso(),
            left_out=self._fleet.left_out(),
        )

    def services(self) -> list[RoutedService]:
        """Every replica with its counters."""
        unreachable = self._fleet.unreachable()
        return [
            views.service(replica, self._counts(replica), unreachable.get(replica.name))
            for replica in self._fleet.replicas()
        ]

    def models(self) -> ModelList:
        """The OpenAI list."""
        rules = self._fleet.settings.model_rules()
        return views.model_list(
            self._fleet.replicas(),
            {name: rules.find(name).split for name in rules.aliases()},
            self._fleet.deployments.states.values(),
        )

    def metrics_page(self, only: str | None) -> bytes:
        """Prometheus' text; of keys that of `only`, or of all."""
        return metrics.RouterCollector(self._fleet, self._counters, only).page()

    async def watch_traffic(self) -> None:
        """TrafficSample the counters for ever, so that whoever looks at the traffic sees where it comes from."""
        while True:
            rows = {replica.id: self._counters.row(replica.slot) for replica in self._fleet.replicas()}
            queue = self._counters.row(self._counters.shape.slots)
            self._keys.add(time.monotonic(), self._fleet.accounts.by_key)
            self._traffic.add(TrafficSample(time.time(), time.monotonic(), rows, queue))
            self._interval_s = max(SAMPLE_S, len(rows) * SAMPLE_REST_S)
            await asyncio.sleep(self._interval_s)

    def traffic(self, since: float, only: str | None) -> Traffic:
        """`/traffic`: points later than `since`, every replica as it is now, and all keys or `only` this one."""
        now = time.monotonic()
        return Traffic(
            interval_s=self._interval_s,
            points=self._traffic.since(since),
            workers=self._fleet.workers_alive(),
            connections=self._fleet.connections(),
            registry_error=self._fleet.registry_error,
            keys=[one for one in self._keys.rates() if only in (None, one.key)],
            replicas=[self._replica_traffic(replica, now) for replica in self._fleet.replicas()],
        )

    def _replica_traffic(self, replica: Replica, now: float) -> ReplicaTraffic:
        requests_s, errors_s = self._traffic.rates.get(replica.id, (0.0, 0.0))
        return ReplicaTraffic(
            name=replica.name,
            standing=replica.eligibility.value,
            static=replica.static,
            in_flight=self._counters.total(replica.slot, IN_FLIGHT),
            ejections=self._counters.total(replica.slot, EJECTIONS),
            ejected=self._counters.ejected_until_s(replica.slot) > now,
            requests_s=requests_s,
            errors_s=errors_s,
        )

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
    openapi.add_routes(app, ROUTES)
    return app


def _answer(
    content: Message | JsonObject, *, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    body = msgspec.json.encode(content)
    return web.Response(body=body, status=status, headers=headers, content_type="application/json", charset="utf-8")


@web.middleware
async def _model_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors about models as both official clients read them: OpenAI's and Anthropic's ask the same paths."""
    try:
        return await handler(request)
    except (ApiError, web.HTTPException) as error:
        if not request.path.startswith(("/v1/models", "/models")) or error.status < HTTPStatus.BAD_REQUEST:
            raise
        if isinstance(error, ApiError):
            content = answers.openai_error(error.status, "model_not_found", error.message)
        else:
            content = answers.openai_error(error.status, "bad_request", error.reason)
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return _answer(ModelFault(error=content), status=error.status, headers=headers)


async def _health(request: web.Request) -> web.Response:
    """How many replicas are healthy, and whether the registry is followed."""
    return _answer(request.app[OVERVIEW].health())


async def _ready(request: web.Request) -> web.Response:
    """Whether new requests should come here: 503 once it was told to stop."""
    if request.app[OVERVIEW].is_leaving:
        return _answer(RouterReadiness(status="leaving"), status=HTTPStatus.SERVICE_UNAVAILABLE)
    return _answer(RouterReadiness(status="ready"))


async def _services(request: web.Request) -> web.Response:
    """Every replica with its health, models and counts."""
    overview = request.app[OVERVIEW]
    services = overview.services()
    return _answer(RoutedServices(services=services, total=len(services), registry_url=overview.registry_url))


async def _stats(request: web.Request) -> web.Response:
    """The same, with totals."""
    overview = request.app[OVERVIEW]
    services = overview.services()
    healthy = sum(service.healthy for service in services)
    return _answer(
        RouterStats(
            total_services=len(services),
            healthy_services=healthy,
            registry_url=overview.registry_url,
            services=services,
        )
    )


async def _metrics(request: web.Request) -> web.Response:
    """For Prometheus."""
    page = request.app[OVERVIEW].metrics_page(_only(request))
    return web.Response(body=page, headers={"Content-Type": metrics.CONTENT_TYPE})


async def _engine_metrics(request: web.Request) -> web.Response:
    """What every engine tells Prometheus, each sample with its `replica`."""
    page = await request.app[OVERVIEW].engines.page()
    return web.Response(body=page, headers={"Content-Type": metrics.CONTENT_TYPE})


async def _traffic(request: web.Request) -> web.Response:
    """Rates and percentiles of the last quarter of an hour, and every replica as it is now."""
    text = request.query.get("since", "0")
    try:
        since = float(text)
    except ValueError as error:
        raise ApiError(400, "parameter 'since' must be a number", field="since") from error
    return _answer(request.app[OVERVIEW].traffic(since, _only(request)))


async def _usage(request: web.Request) -> web.Response:
    """Requests and tokens of the caller's own key, by model, by hours or days; without keys those of everybody who shows none."""
    return _answer(await request.app[OVERVIEW].own_usage.report(_key(request), request.query))


def _key(request: web.Request) -> str:
    """The name of the key that was shown."""
    return unquote(request.headers.getall(KEY_FIELD.decode(), [""])[-1])


def _only(request: web.Request) -> str | None:
    """The one key whose use may be seen; None: that of all."""
    return _key(request) if SEES_FIELD.decode() in request.headers else None


async def _models(request: web.Request) -> web.Response:
    """The models that can be asked now; those of deployments without a replica have a `status`: `cold`, `starting`, `asleep`."""
    return _answer(request.app[OVERVIEW].models())


async def _model(request: web.Request) -> web.Response:
    """One of them; 404 when no healthy replica serves it."""
    name = request.match_info["model"]
    for model in request.app[OVERVIEW].models().data:
        if model["id"] == name:
            return _answer(model)
    raise ApiError(404, f"no healthy replica serves the model {name!r}")


async def _description(request: web.Request) -> web.Response:
    """What this port answers besides the calls that it passes on to replicas."""
    del request
    return _answer(describe())


def describe() -> JsonObject:
    """The control plane as an OpenAPI document."""
    return openapi.describe("inference-svc router", ROUTES, faults=())


def _get(path: str, handler: Handler, answers: Any, *, faults: tuple[int, ...] = (), **more: Any) -> Route:
    return Route("GET", path, handler, (handler.__doc__ or "").strip(), answers, faults, **more)


_EPOCH_S = {"type": "string", "pattern": "^[0-9]{1,11}(\\.[0-9]{1,6})?$"}
_OWN_USAGE = (
    Parameter("since", _EPOCH_S, "From this hour on, in epoch seconds; a week ago unless said."),
    Parameter("until", _EPOCH_S, "Up to this hour, in epoch seconds; now unless said."),
    Parameter("step", {"enum": ["hour", "day"]}, "A row for each hour or day."),
)
_SINCE = Parameter("since", {"type": "number"}, "Only points later than this, in epoch seconds.")
_ONE_MODEL = {200: JsonObject, 404: ModelFault}
ROUTES: tuple[Route, ...] = (
    *(_get(path, _health, {200: RouterHealth}) for path in ("/", "/health", "/status")),
    _get("/ready", _ready, {200: RouterReadiness, 503: RouterReadiness}),
    _get("/services", _services, {200: RoutedServices}),
    _get("/stats", _stats, {200: RouterStats}),
    _get("/metrics", _metrics, {200: None}),
    _get("/metrics/engines", _engine_metrics, {200: None}),
    _get("/traffic", _traffic, {200: Traffic}, faults=(400,), query=(_SINCE,)),
    _get("/v1/usage", _usage, {200: UsageReport}, faults=(400, 404, 503), query=_OWN_USAGE),
    _get("/models", _models, {200: ModelList}),
    _get("/models/{model:.+}", _model, _ONE_MODEL),
    _get("/v1/models", _models, {200: ModelList}),
    _get("/v1/models/{model:.+}", _model, _ONE_MODEL),
    _get("/openapi.json", _description, {200: JsonObject}),
)
