"""One probe: connect, ask for a path, read the first line of the answer.

Ten thousand records asked every 30 s are 333 probes a second. A whole HTTP client would spend most of a probe on
connection pools, headers and bodies that nobody looks at; this asks and reads twelve bytes. Only https needs the client.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver

from common import __version__
from common.hosts import dial
from registry.outbound.addresses import parse_address

OK_LINE = b"HTTP/1."
LINE_LIMIT_BYTES = 1024


@dataclass(slots=True)
class _Answer(asyncio.Protocol):
    """Collects an answer up to its status code."""

    request: bytes
    verdict: asyncio.Future[bool]
    received: bytes = b""
    transport: asyncio.Transport | None = field(default=None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none of asyncio's classes
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.received += data[:LINE_LIMIT_BYTES]
        if len(self.received) >= len(b"HTTP/1.1 200"):
            self._decide(good=self.received.startswith(OK_LINE) and self.received[8:12] == b" 200")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._decide(good=False)

    def _decide(self, *, good: bool) -> None:
        if not self.verdict.done():
            self.verdict.set_result(good)
        if self.transport is not None:
            self.transport.abort()


async def ask(url: str, *, timeout_s: float, resolver: AbstractResolver, session: aiohttp.ClientSession) -> bool:
    """True when a GET of `url` is answered with 200 in time. Redirects count as failures.

    Args:
        url: What to ask.
        timeout_s: For all of it.
        resolver: Turns names into addresses that may be asked.
        session: For https.
    """
    try:
        async with asyncio.timeout(timeout_s):
            parts = urlsplit(url)
            if parts.scheme != "http":
                async with session.get(url, allow_redirects=False) as answer:
                    return answer.status == 200  # noqa: PLR2004 - HTTP's OK
            host, port = parts.hostname or "", parts.port or 80
            addresses = [host] if parse_address(host) is not None else await _resolve(host, port, resolver)
            return await _ask_plainly(addresses, port, parts.netloc, parts.path)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return False


async def _resolve(host: str, port: int, resolver: AbstractResolver) -> list[str]:
    return [one["host"] for one in await resolver.resolve(host, port)]


async def _ask_plainly(addresses: Sequence[str], port: int, authority: str, path: str) -> bool:
    loop = asyncio.get_running_loop()
    head = f"GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: inference-svc/{__version__}\r\n"
    request = f"{head}Accept: */*\r\nConnection: close\r\n\r\n".encode("ascii")
    verdict: asyncio.Future[bool] = loop.create_future()
    if len(addresses) == 1:
        transport, _ = await loop.create_connection(lambda: _Answer(request, verdict), addresses[0], port)
    else:
        reached, _ = await dial(addresses, port)
        transport, _ = await loop.create_connection(lambda: _Answer(request, verdict), sock=reached)
    try:
        return await verdict
    finally:
        transport.abort()
