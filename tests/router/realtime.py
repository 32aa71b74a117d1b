"""Real WebSocket servers as replicas, and a client to a data plane under test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from tests.ports import free_port
from tests.router.fakes import Plane

Handler = Callable[[ServerConnection], Awaitable[None]]


async def echo(socket: ServerConnection) -> None:
    async for message in socket:
        await socket.send(message)


@asynccontextmanager
async def library_server(handler: Handler, **more: Any) -> AsyncIterator[int]:
    async with serve(handler, "127.0.0.1", 0, **more) as server:
        yield int(next(iter(server.sockets)).getsockname()[1])


@asynccontextmanager
async def uvicorn_server(app: FastAPI) -> AsyncIterator[int]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    running = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield port
    server.should_exit = True
    await running


def url(plane: Plane, query: str = "?model=m", path: str = "/v1/realtime") -> str:
    return f"ws://127.0.0.1:{plane.port}{path}{query}"


def talk_to(plane: Plane, query: str = "?model=m", **more: Any) -> connect:
    return connect(url(plane, query), proxy=None, **more)
