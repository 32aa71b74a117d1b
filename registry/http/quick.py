"""Plain heartbeats, answered before the application: no route is looked up, no middleware called, no head put together.

Nearly every request is one, and what aiohttp does around a handler costs more than renewing a lease. Whatever is not plain,
and whatever would be refused, is left to the ordinary way, with nothing changed and nothing counted: so there is one place
that says no. A test sends the same requests both ways.
"""

import re

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE

from common.http.errors import ApiError, tell
from common.names import SERVICE_NAME
from registry.http import heartbeat
from registry.http.context import REGISTRY
from registry.http.guard import Level

ROUTE = "/services/{name}/heartbeat"
_PATH = re.compile(rf"/services/({SERVICE_NAME.pattern})/heartbeat")
_JUDGED = (hdrs.ORIGIN, hdrs.EXPECT, hdrs.CONTENT_ENCODING, hdrs.UPGRADE)
"""Headers that make a request one for the ordinary way."""
_HEAD = (
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nDate: {date}\r\nServer: "
    + SERVER_SOFTWARE
    + "\r\n\r\n"
)


class _Written(web.StreamResponse):
    """An answer whose bytes are there already. It holds nothing of a request, so that one serves all."""

    raw = b""
    keep_alive = True

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Write it, head and body in one piece."""
        writer = request.writer
        await writer.write(self.raw)
        await writer.drain()
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """It is written."""


class QuickHeartbeats:
    """Answers the plain ones of `app`'s heartbeats; `common.http.serve.start` asks it first."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._answer = _Written()
        self._stamp: tuple[str, int | None] | None = None

    def __call__(self, request: web.Request) -> web.StreamResponse | None:
        """The answer, when the lease is renewed; None when nothing has been done."""
        found = _PATH.fullmatch(request.raw_path)
        if found is None or request.method != "POST" or request.version != HttpVersion11 or not request.keep_alive:
            return None
        registry, name, headers, content = self._app[REGISTRY], found[1], request.headers, request.content
        for header in _JUDGED:
            if header in headers:
                return None
        if (
            not content.is_eof()
            or content.total_bytes > heartbeat.AT_ONCE_BYTES
            or content.exception() is not None
            or registry.connections.full
            or not registry.guard.grants_to(headers.get(hdrs.AUTHORIZATION), Level.REGISTER, name)
            or registry.doubts.doubt(name) is not None
        ):
            return None
        raw = content.read_nowait()
        try:
            beat = heartbeat.parse(raw, name)
        except ApiError:
            beat = None
        if beat is None or not registry.writer.renew_at_once(beat):
            request[heartbeat.BODY] = raw
            return None
        registry.metrics.answers[ROUTE, 200] += 1
        tell(request, 200)
        stamp = registry.renderer.timestamp(), registry.pace.interval_s
        if stamp != self._stamp:
            body = heartbeat.received(registry)
            self._answer.raw = _HEAD.format(length=len(body), date=rfc822_formatted_time()).encode() + body
            self._stamp = stamp
        return self._answer
