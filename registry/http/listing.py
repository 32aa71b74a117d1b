"""Reading the whole table: at once, by long poll, or as a stream of changes."""

import asyncio
import re
from collections.abc import Sequence

import structlog
from aiohttp import ClientConnectionResetError, web

from common.http.errors import ApiError
from common.paced import paced
from common.wire.registry import Peer
from registry.http.bodies import RouterPresence, parse
from registry.http.context import GRANT, REGISTRY, long_answer
from registry.http.guard import EVERYTHING, Level
from registry.outbound.addresses import AddressRefused
from registry.views.watch import Subscriber, WatchHub

log = structlog.get_logger(__name__)
BEAT_S = 10.0
"""A watch that has nothing to say says so this often."""
STALL_S = 60.0
"""A watcher that takes nothing for so long is let go."""
PACE_S = 0.04
"""Between two writes to one watcher: under many heartbeats a write for each change costs both ends more than the changes do."""
LONGEST_WAIT_S = 60.0
_DURATION = re.compile(r"(\d{1,5}(?:\.\d{1,3})?)(ms|s|m)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}


async def list_services(request: web.Request) -> web.Response:
    """`GET /services[?status=…][&healthy=true|false][&index=N&wait=30s[&epoch=E]]`."""
    registry = request.app[REGISTRY]
    catalogue = registry.catalogue
    healthy = _healthy(request)
    await wait_for_news(request)
    status = request.query.get("status")
    if status is None and healthy is None:
        table = await registry.renderer.table()
        revision, shown, total = table.revision, table.services, table.total
    else:
        revision = catalogue.revision
        entries = [
            entry
            async for entry in paced(list(catalogue))
            if (status is None or entry.instance.status == status)
            and (healthy is None or entry.instance.is_healthy == healthy)
        ]
        shown, total = await registry.renderer.services(entries), len(entries)
    end = b',"total":%d,"timestamp":"%b"}' % (total, registry.renderer.timestamp().encode())
    headers = {"X-Index": str(revision), "X-Epoch": catalogue.epoch}
    return long_answer([b'{"services":', *shown, end], headers=headers)


async def watch(request: web.Request) -> web.StreamResponse:
    """`GET /v1/watch[?since=REV&epoch=E][&router=NAME&router_url=URL]`: one JSON object per line, while the client reads."""
    registry = request.app[REGISTRY]
    since = _number(request, "since")
    router = _identify(request)
    watcher = registry.hub.subscribe(since=since, epoch=request.query.get("epoch"))
    response = web.StreamResponse(
        headers={
            "Content-Type": "application/x-ndjson",
            "Cache-Control": "no-store",
            "X-Epoch": registry.catalogue.epoch,
        }
    )
    try:
        await response.prepare(request)
        with registry.routers.watching(router):
            await _stream(registry.hub, watcher, response)
    except (ClientConnectionResetError, ConnectionError) as error:
        log.debug("watch.client_gone", reason=str(error))
    except TimeoutError:
        log.warning("watch.stalled", after_s=STALL_S, remote=request.remote)
        if request.transport is not None:
            request.transport.abort()
    finally:
        registry.hub.unsubscribe(watcher)
    return response


async def _stream(hub: WatchHub, watcher: Subscriber, response: web.StreamResponse) -> None:
    """Write lines until the hub closes.

    Raises:
        TimeoutError: The client takes nothing.
        ClientConnectionResetError: The client went away.
    """
    while not watcher.closed:
        try:
            async with asyncio.timeout(BEAT_S):
                await watcher.ready.wait()
        except TimeoutError:
            await _write(response, [hub.beat()], STALL_S)
            continue
        await _write(response, await hub.take(watcher), STALL_S)
        await asyncio.sleep(PACE_S)


async def _write(response: web.StreamResponse, pieces: Sequence[bytes], timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        for piece in filter(None, pieces):
            await response.write(piece)


async def wait_for_news(request: web.Request) -> None:
    """Hold a long poll until something changed after its index, or its time is over."""
    index = _number(request, "index")
    if index is None:
        return
    registry = request.app[REGISTRY]
    epoch = request.query.get("epoch", registry.catalogue.epoch)
    if epoch == registry.catalogue.epoch:
        await registry.hub.wait_for_change(index, _seconds(request.query.get("wait", "0s")))


def _identify(request: web.Request) -> Peer | None:
    """The router that a watch's parameters name, if there is one and it is believed; its watch goes on anyway.

    Whoever may not register is not believed: the page sends prompts and keys to these addresses.
    """
    query = request.query
    if "router" not in query:
        return None
    try:
        router = parse(RouterPresence, {name: query[name] for name in ("router", "router_url") if name in query})
        request.get(GRANT, EVERYTHING).check(Level.REGISTER, router.router)
        request.app[REGISTRY].addresses.check_url(router.router_url)
    except (ApiError, AddressRefused) as error:
        log.warning("router.not_believed", router=query["router"][:128], reason=str(error))
        return None
    return Peer(router.router, router.router_url)


def _healthy(request: web.Request) -> bool | None:
    text = request.query.get("healthy")
    if text is None:
        return None
    if text.lower() not in {"true", "false"}:
        raise ApiError(400, f"parameter 'healthy' must be true or false, not {text[:32]!r}", field="healthy")
    return text.lower() == "true"


def _number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 19):  # noqa: PLR2004 - digits of a 64-bit number
        raise ApiError(400, f"parameter {name!r} must be a number, not {text[:32]!r}", field=name)
    return int(text)


def _seconds(text: str) -> float:
    duration = _DURATION.fullmatch(text)
    if duration is None:
        raise ApiError(400, f"parameter 'wait' must be like 30s, not {text[:32]!r}", field="wait")
    return min(float(duration[1]) * _UNIT_S[duration[2]], LONGEST_WAIT_S)
