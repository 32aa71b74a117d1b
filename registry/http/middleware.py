"""What every request passes before its handler: how many there may be, from which page, with which token."""

from aiohttp import web

from common.http.audit import READING, is_change
from common.http.errors import ApiError, Handler, render_errors, tell
from registry.core.model import CommandRefused, Conflict, Unknown
from registry.core.store import StoreError, StoreFull
from registry.http.context import GRANT, REGISTRY, Registry
from registry.http.guard import Guard, Level
from registry.http.origin import ForeignPage, check_local_name, check_origin
from registry.views.watch import TooManyWatchers

OPEN = frozenset({"/health", "/ui"})
NO_CHANGE = {
    ("POST", "/services/{name}/heartbeat"): "a lease goes on, every few seconds",
    ("POST", "/services"): "babysitters register by themselves; /services and the log tell of it",
    ("POST", "/v1/routers/{name}/failing"): "a router tells what it sees",
    ("POST", "/v1/routers/{name}/demand"): "a router tells what it is asked for",
    ("POST", "/v1/routers/{name}/usage"): "a router tells what it counted",
    ("POST", "/v1/routers/{name}/leases"): "a router tells what it holds of limits, and is granted more",
    ("POST", "/api/v1/replicas/{id}/health"): "a question to the server",
    ("POST", "/ui/routers/{router}/chat"): "a chat",
}
"""Calls that are not in the audit, though their method is no reading one, and why."""


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give what catalogue and store refuse its status, and leave every other fault to `render_errors`.

    One middleware instead of two: each costs every heartbeat an await.
    """
    registry = request.app[REGISTRY]
    try:
        registry.connections.check()
        check_page(registry, request)
        if registry.guard.grants:
            admit(registry.guard, request)
        answered = await handler(request)
    except (CommandRefused, StoreError, TooManyWatchers) as error:
        answered = refusal(error).response()
    except Exception as error:  # noqa: BLE001 - handed on at once
        answered = await render_errors(request, _raiser(error))
    known = (
        GRANT in request or not registry.guard.grants
    )  # not a stranger, whom a page or too many connections kept out
    if known and is_change(request, answered.status, NO_CHANGE):
        registry.audit.note(request, answered.status, role_of(registry, request))
    resource = request.match_info.route.resource
    registry.metrics.answers[resource.canonical if resource else "none", answered.status] += 1
    tell(request, answered.status)
    return answered


def check_page(registry: Registry, request: web.Request) -> None:
    """Keep foreign pages from using a browser that can reach this registry.

    Raises:
        ApiError: 403.
    """
    origin = None if request.method in READING else request.headers.get("Origin")
    ours = request.path.startswith("/ui")
    if origin is None and not ours:
        return
    try:
        if registry.on_loopback and not registry.guard.grants:
            check_local_name(request.host)
        if origin is not None:
            check_origin(origin, request.host)
    except ForeignPage as error:
        raise ApiError(403, str(error)) from error


def admit(guard: Guard, request: web.Request) -> None:
    """Judge the token of a request; `GET /health` and the empty page at `GET /ui` need none.

    Raises:
        ApiError: 401, 403 or 429.
    """
    if request.path in OPEN and request.method in READING:
        return
    grant = guard.admit(request.headers.get("Authorization"), request.remote or "")
    request[GRANT] = grant  # also where it is not enough: the audit says whose it was
    grant.check(Level.READ if request.method in READING else Level.REGISTER, request.match_info.get("name"))


def role_of(registry: Registry, request: web.Request) -> str | None:
    """What the caller's token says of it; None where no token is needed, or it showed none."""
    grant = request.get(GRANT)
    if grant is None or not registry.guard.grants:
        return None
    return f"token {grant.level.name.lower()}" + (f" {grant.prefix}" if grant.prefix else "")


def refusal(error: CommandRefused | StoreError | TooManyWatchers) -> ApiError:
    """The answer to what was refused."""
    match error:
        case Unknown():
            return ApiError(404, str(error))
        case Conflict():
            return ApiError(409, str(error))
        case StoreFull():
            return ApiError(507, f"the store has no room: {error}")
        case StoreError():
            return ApiError(503, f"the store is not available: {error}", headers={"Retry-After": "2"})
        case _:
            return ApiError(503, str(error), headers={"Retry-After": "10"})


def _raiser(error: Exception) -> Handler:
    async def fail(_request: web.Request) -> web.StreamResponse:
        raise error

    return fail
