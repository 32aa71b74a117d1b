"""A log as an HTTP answer: its last lines, and what comes after."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from aiohttp import ClientConnectionResetError, web

from common.http.errors import ApiError
from common.log_tail import open_log

LOOK_S = 0.2
STALL_S = 60.0
"""A reader that takes nothing for so long is let go."""
TRUE = frozenset({"1", "true", "yes"})


async def send_log(request: web.Request, path: Path, look: Callable[[], None] = lambda: None) -> web.StreamResponse:
    """Answer `?tail=100&follow=1` with the log at `path`; `look` is called in a thread before each look at a followed one.

    Raises:
        ApiError: 422, `tail` is no number.
    """
    file = await asyncio.to_thread(open_log, path, number_of_lines(request, 100))
    follow = request.query.get("follow", "0").lower() in TRUE
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"})
    try:
        await response.prepare(request)
        while True:
            raw = await asyncio.to_thread(file.read)
            if raw:
                await write(response, raw)
            elif not follow or not is_open(request):
                return response
            else:
                await asyncio.sleep(LOOK_S)
                await asyncio.to_thread(look)
    except (ClientConnectionResetError, TimeoutError):
        return response


def number_of_lines(request: web.Request, default: int) -> int:
    """The query's `tail`.

    Raises:
        ApiError: 422.
    """
    text = request.query.get("tail", str(default))
    if not (text.isascii() and text.isdigit() and len(text) < len("10000000")):
        problem = "must be a number of lines"
        raise ApiError(422, f"field 'tail': {problem}", field="tail", details=[{"field": "tail", "problem": problem}])
    return int(text)


def is_open(request: web.Request) -> bool:
    """The client is still there."""
    return request.transport is not None and not request.transport.is_closing()


async def write(response: web.StreamResponse, raw: bytes) -> None:
    """Send `raw`.

    Raises:
        TimeoutError: The client takes nothing.
    """
    async with asyncio.timeout(STALL_S):
        await response.write(raw)
