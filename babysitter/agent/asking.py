"""One call of a babysitter."""

from collections.abc import Mapping
from http import HTTPStatus

import aiohttp
from msgspec import to_builtins

from common.http.client import read_bounded
from common.wire.replica import StopRequest

CALL_TIMEOUT_S = 5.0
ANSWER_LIMIT_BYTES = 64 << 10


async def ask(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], body: StopRequest | None
) -> tuple[int, bytes]:
    """Status and body of its answer; 503 where nobody answers."""
    timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
    call = {"json": to_builtins(body or {}), "headers": headers, "timeout": timeout}
    try:
        async with session.post(url, **call, allow_redirects=False) as answer:
            return answer.status, await read_bounded(answer, ANSWER_LIMIT_BYTES)
    except (aiohttp.ClientError, TimeoutError):  # also where it has no address yet
        return HTTPStatus.SERVICE_UNAVAILABLE, b""
