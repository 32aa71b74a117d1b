"""The way from the operator's page to routers and babysitters: fixed calls, to addresses of records only, bounded.

The browser reaches the registry and perhaps nothing else, so the registry asks for it. What is asked is one of few
paths; where, stands in a record that passed the rules for addresses, and a name is resolved under the same rules. A
redirect is not followed, an answer is read up to a limit, and what comes back is never served as a page.
"""

import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver

from common import __version__
from common.http.client import AnswerTooLarge, read_bounded
from common.http.errors import ApiError
from common.wire.registry import Peer

AT_ONCE = 32
STREAMS_AT_ONCE = 16
"""Fewer, so that chats which hang leave room for the rest of the page."""
ANSWER_LIMIT_BYTES = 4 << 20
ERROR_LIMIT_BYTES = 4096
CONNECT_TIMEOUT_S = 2.0
CALL_TIMEOUT_S = 8.0
STREAM_SILENCE_S = 300.0
STREAM_TIMEOUT_S = 1800.0


class PageRelay:
    """Asks on behalf of the page.

    Args:
        resolver: Turns names into addresses that may be asked.
        tls: What routers and babysitters on https are checked with.
    """

    def __init__(self, resolver: AbstractResolver, tls: ssl.SSLContext) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=AT_ONCE, force_close=True, resolver=resolver, use_dns_cache=False, ssl=tls
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers={"User-Agent": f"inference-svc/{__version__}"},
        )
        self._running = self._streaming = 0

    async def aclose(self) -> None:
        """Close the session."""
        await self._session.close()

    async def ask(self, peer: Peer, method: str, path: str, *, authorization: str | None) -> bytes:
        """The body of a successful answer.

        Args:
            peer: Whom.
            method: HTTP's.
            path: With its query; ours, never the caller's text unchecked.
            authorization: For the other side; None for none.

        Raises:
            ApiError: 502 when it cannot be had, with `upstream_status` when there was another answer; 503 when too many
                calls are under way.
        """
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        async with self._call(peer, method, path, timeout, authorization=authorization) as answer:
            return await read_bounded(answer, ANSWER_LIMIT_BYTES)

    async def stream(
        self, peer: Peer, path: str, body: Mapping[str, Any], *, authorization: str | None
    ) -> AsyncGenerator[bytes, None]:
        """The body of a successful answer to a POST, as it comes.

        Raises:
            ApiError: As `ask`; after the first chunk when the stream breaks.
        """
        if self._streaming >= STREAMS_AT_ONCE:
            raise ApiError(503, "too many chats are under way", headers={"Retry-After": "5"})
        timeout = aiohttp.ClientTimeout(
            total=STREAM_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S, sock_read=STREAM_SILENCE_S
        )
        data = msgspec.json.encode(body)
        self._streaming += 1
        try:
            async with self._call(peer, "POST", path, timeout, authorization=authorization, body=data) as answer:
                async for chunk in answer.content.iter_any():
                    yield chunk
        finally:
            self._streaming -= 1

    @asynccontextmanager
    async def _call(
        self,
        peer: Peer,
        method: str,
        path: str,
        limits: aiohttp.ClientTimeout,
        *,
        authorization: str | None,
        body: bytes | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        if self._running >= AT_ONCE:
            raise ApiError(503, "too many calls of the page are under way", headers={"Retry-After": "2"})
        headers = {"Authorization": authorization} if authorization else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        url = peer.url + path
        self._running += 1
        try:
            async with self._session.request(
                method, url, headers=headers, data=body, timeout=limits, allow_redirects=False
            ) as answer:
                if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
                    raise await _refused(answer, peer.name)
                yield answer
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise ApiError(502, f"{peer.name} at {peer.url}: {reason}") from error
        finally:
            self._running -= 1


async def _refused(answer: aiohttp.ClientResponse, name: str) -> ApiError:
    """What another status means to the page, with the reason that the other side gave."""
    try:
        refusal = msgspec.json.decode(await read_bounded(answer, ERROR_LIMIT_BYTES))
    except (msgspec.DecodeError, AnswerTooLarge):
        refusal = None
    reason = refusal.get("error") if isinstance(refusal, dict) else None
    text = reason.get("message") if isinstance(reason, dict) else reason
    shown = f": {text}" if isinstance(text, str) else ""
    return ApiError(502, f"{name} answered {answer.status}{shown}", upstream_status=answer.status)
