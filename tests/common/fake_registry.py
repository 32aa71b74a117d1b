"""A registry that answers what a test tells it to, and remembers what it was asked."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from common.wire.base import Message

HANG = 0


class Beating(Message, frozen=True, kw_only=True):
    """The body of a heartbeat."""

    status: str = "running"


@dataclass(slots=True)
class Asked:
    """One request that arrived."""

    method: str
    path: str
    body: Any
    authorization: str | None


@dataclass(slots=True)
class FakeRegistry:
    """Answers `script` in order, then 200 and `usual` for ever.

    Each entry is a status, a status and a JSON body, or HANG. A watch sends `watch_lines` and ends, or stays silent.
    """

    script: deque[int | tuple[int, Any]] = field(default_factory=deque)
    asked: asyncio.Queue[Asked] = field(default_factory=asyncio.Queue)
    usual: dict[str, Any] = field(default_factory=dict)
    watch_lines: list[bytes] | None = None
    watch_status: int = 200
    watch_stays: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)
    server: TestServer | None = None

    @property
    def url(self) -> str:
        assert self.server is not None
        return str(self.server.make_url("")).rstrip("/")

    async def begin(self) -> None:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_get("/v1/watch", self._watch)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self.server = TestServer(app)
        await self.server.start_server()

    async def end(self) -> None:
        self.over.set()
        if self.server is not None:
            await self.server.close()

    async def _answer(self, request: web.Request) -> web.Response:
        raw = await request.read()
        body = await request.json() if raw else None
        self.asked.put_nowait(Asked(request.method, request.raw_path, body, request.headers.get("Authorization")))
        entry = self.script.popleft() if self.script else 200
        status, content = entry if isinstance(entry, tuple) else (entry, self.usual)
        if status == HANG:
            await self.over.wait()
            return web.Response()
        if isinstance(content, bytes):
            return web.Response(status=status, body=content)
        headers = {"Location": "http://127.0.0.1:1/"} if status in {301, 302, 307} else {}
        return web.json_response(content, status=status, headers=headers)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        if self.watch_status != 200 or self.watch_lines is None:
            return web.Response(status=self.watch_status if self.watch_status != 200 else 404)
        answer = web.StreamResponse()
        await answer.prepare(request)
        for line in self.watch_lines:
            await answer.write(line)
        if self.watch_stays:
            await self.over.wait()
        return answer
