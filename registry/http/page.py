"""The operator's page at `/ui`: one file without outside parts, and the few calls that only it makes.

The page itself holds nothing, so it needs no token; everything it shows comes from calls that do. Its policy names its
one script and one style sheet by their hashes and forbids everything else, markup made from strings included.
"""

import base64
import hashlib
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import structlog
from aiohttp import web

from common import __version__
from common.http.errors import ApiError, read_json_object
from common.wire.registry import Peer, RouterList, Session
from common.wire.words import RecordKind
from registry.core.model import Unknown
from registry.http.context import GRANT, REGISTRY, answer, require_entry
from registry.http.guard import EVERYTHING, Level
from registry.views.render import encode_json

log = structlog.get_logger(__name__)
FILE = Path(__file__).parent.parent / "ui" / "page.html"
NO_BABYSITTER = frozenset({RecordKind.SERVER, RecordKind.AGENT})
"""Types of records that are something else than a babysitter's own."""
LOG_LINES_LIMIT = 2000
UPSTREAM_AUTHORIZATION = "X-Upstream-Authorization"
"""What the page sends for the router's or the babysitter's own guard; `Authorization` is the registry's."""
_PLAIN = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
_JSON = {**_PLAIN, "Content-Type": "application/json"}


def _hash(page: str, tag: str) -> str:
    """The CSP source of the one element `tag` of the page."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def policy(page: str) -> str:
    """The Content-Security-Policy of the page."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(page, 'script')}",
            f"style-src {_hash(page, 'style')}",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


_PAGE = FILE.read_text()
_BODY = _PAGE.encode()
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": policy(_PAGE),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


async def page(request: web.Request) -> web.Response:
    """`GET /ui`."""
    del request
    return web.Response(body=_BODY, headers=_HEADERS)


async def session(request: web.Request) -> web.Response:
    """`GET /ui/session`: what the caller's token allows."""
    grant = request.get(GRANT, EVERYTHING)
    guarded = bool(request.app[REGISTRY].guard.grants)
    shown = Session(level=grant.level.name.lower(), prefix=grant.prefix, guarded=guarded, version=__version__)
    return answer(shown, headers=_PLAIN)


async def routers(request: web.Request) -> web.Response:
    """`GET /ui/routers`."""
    return answer(RouterList(routers=list(request.app[REGISTRY].routers)), headers=_PLAIN)


async def traffic(request: web.Request) -> web.Response:
    """`GET /ui/routers/{router}/traffic[?since=EPOCH_S]`."""
    text = request.query.get("since", "0")
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text):
        raise ApiError(400, "parameter 'since' must be epoch seconds", field="since")
    return web.Response(body=await _ask(request, _router(request), "GET", f"/traffic?since={text}"), headers=_JSON)


async def timeline(request: web.Request) -> web.Response:
    """`GET /ui/babysitters/{name}/timeline`."""
    return web.Response(body=await _ask(request, _babysitter(request), "GET", "/timeline"), headers=_JSON)


async def logs(request: web.Request) -> web.Response:
    """`GET /ui/babysitters/{name}/logs[?stream=stdout|stderr][&tail=N]`."""
    stream, tail = request.query.get("stream", "stdout"), request.query.get("tail", "200")
    if stream not in {"stdout", "stderr"}:
        raise ApiError(400, "parameter 'stream' must be stdout or stderr", field="stream")
    if not re.fullmatch(r"[0-9]{1,4}", tail) or int(tail) > LOG_LINES_LIMIT:
        raise ApiError(400, f"parameter 'tail' must be a number up to {LOG_LINES_LIMIT}", field="tail")
    body = await _ask(request, _babysitter(request), "GET", f"/logs?stream={stream}&tail={tail}")
    return web.Response(body=body, headers={**_PLAIN, "Content-Type": "text/plain; charset=utf-8"})


async def act(request: web.Request) -> web.Response:
    """`POST /ui/babysitters/{name}/stop` and `/retry`: an administrator's, as the same calls at the agents are."""
    request.get(GRANT, EVERYTHING).check(Level.ADMIN, None)
    verb = request.path.rpartition("/")[2]
    return web.Response(body=await _ask(request, _babysitter(request), "POST", f"/{verb}"), status=202, headers=_JSON)


async def chat(request: web.Request) -> web.StreamResponse:
    """`POST /ui/routers/{router}/chat`: one chat completion by that router, streamed."""
    router = _router(request)
    body = await read_json_object(request)
    authorization = request.headers.get(UPSTREAM_AUTHORIZATION)
    chunks = request.app[REGISTRY].relay.stream(router, "/v1/chat/completions", body, authorization=authorization)
    async with aclosing(chunks):
        first = await anext(chunks, b"")  # what goes wrong before it is an answer of its own
        response = web.StreamResponse(headers={**_PLAIN, "Content-Type": "text/event-stream"})
        try:
            await response.prepare(request)
            await response.write(first)
            await _pass_on(chunks, response)
        except ConnectionError as error:  # the page went away; closing the stream tells the router
            log.debug("chat.client_gone", reason=str(error))
    return response


async def _pass_on(chunks: AsyncGenerator[bytes, None], response: web.StreamResponse) -> None:
    """Write a stream on; when it breaks, its last event says so."""
    try:
        async for chunk in chunks:
            await response.write(chunk)
    except ApiError as error:
        await response.write(b"data: %b\n\n" % encode_json({"error": {"message": error.message}}))


async def _ask(request: web.Request, peer: Peer, method: str, path: str) -> bytes:
    authorization = request.headers.get(UPSTREAM_AUTHORIZATION)
    return await request.app[REGISTRY].relay.ask(peer, method, path, authorization=authorization)


def _router(request: web.Request) -> Peer:
    name = request.match_info["router"]
    peer = request.app[REGISTRY].routers.get(name)
    if peer is None:
        raise Unknown(f"router {name!r} not found")
    return peer


def _babysitter(request: web.Request) -> Peer:
    instance = require_entry(request).instance
    if instance.kind in NO_BABYSITTER:
        raise Unknown(f"{instance.name!r} is no babysitter")
    return Peer(instance.name, instance.registration.url.rstrip("/"))
