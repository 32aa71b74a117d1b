"""Passing an answer on as it comes, for as long as both sides want it."""

import asyncio

import aiohttp
from aiohttp import ClientConnectionResetError, web

LOOK_S = 1.0
"""A client that has gone is noticed within this time, also while there is nothing to pass on."""
WRITE_STALL_S = 60.0


async def pass_bytes(request: web.Request, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
    """Write what `answer` still has into `response`, which was begun.

    An answer that is cut upstream is cut here as well: to end it would call it whole (docs/faults.md F2).
    """
    reading: asyncio.Future[bytes] | None = None
    try:
        while request.transport is not None and not request.transport.is_closing():
            reading = reading or asyncio.ensure_future(answer.content.readany())
            done, _ = await asyncio.wait({reading}, timeout=LOOK_S)
            if not done:
                continue
            chunk = reading.result()
            reading = None
            if not chunk:
                return
            async with asyncio.timeout(WRITE_STALL_S):
                await response.write(chunk)
    except (aiohttp.ClientError, TimeoutError, ClientConnectionResetError):
        if request.transport is not None:
            request.transport.abort()
    finally:
        if reading is not None:
            reading.cancel()
