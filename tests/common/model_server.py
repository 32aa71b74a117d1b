"""A server whose models call answers in several packets, as a long list does on a real network."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web
from aiohttp.test_utils import TestServer


class ModelServer:
    """Serves `models`, which a test may change, as full model objects.

    `calls` counts models calls; `padding` is text that every model object carries; `is_restless`: every answer differs.
    """

    def __init__(self, models: list[str]) -> None:
        self.models = models
        self.calls = 0
        self.padding = "x" * 2000
        self.is_restless = True
        self.status = 200
        self.url = ""

    def content(self) -> bytes:
        """The list, with a `created` of its own at every call, as vLLM has it."""
        objects = [
            {"id": name, "object": "model", "created": self.calls * self.is_restless, "description": self.padding}
            for name in self.models
        ]
        return msgspec.json.encode({"object": "list", "data": objects})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models`."""
        self.calls += 1
        raw, response = self.content(), web.StreamResponse(status=self.status)
        await response.prepare(request)
        for piece in (raw[: len(raw) // 2], raw[len(raw) // 2 :]):
            await response.write(piece)
            await asyncio.sleep(0.01)
        return response


async def _well(_request: web.Request) -> web.Response:
    return web.Response()


@asynccontextmanager
async def model_server(*models: str) -> AsyncIterator[ModelServer]:
    """A running one."""
    made = ModelServer(list(models))
    app = web.Application()
    app.router.add_get("/v1/models", made.answer)
    app.router.add_get("/health", _well)
    async with TestServer(app) as server:
        made.url = str(server.make_url("")).rstrip("/")
        yield made
