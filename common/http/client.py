"""The one client session of a process, with the manners of docs/faults.md G5 and H4 to H8."""

import os
import ssl

import aiohttp

from common import __version__
from common.http.resolver import Resolver

KEEPALIVE_S = 4.0
"""Idle sockets are dropped before the common 5 s limit of servers, so that none is reused as it closes (F3)."""
CONNECT_TIMEOUT_S = 2.0


def make_session(
    *,
    timeout_s: float,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    limit: int = 100,
    authorization: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> aiohttp.ClientSession:
    """A session without cookies, proxies or limits that wait silently.

    Args:
        timeout_s: Whole-request timeout unless a call overrides it.
        connect_timeout_s: Timeout of one TCP connect.
        limit: Connections at once; a probe of thousands of records wants its own semaphore below this.
        authorization: Sent with every call, for a session that asks one server only.
        tls: What servers on https are checked with; None for the system's CAs.

    Redirects are the caller's to refuse (`allow_redirects=False`).
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=limit,
            keepalive_timeout=KEEPALIVE_S,
            ttl_dns_cache=10,
            resolver=Resolver(),
            ssl=tls if tls is not None else True,
        ),
        timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=connect_timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        headers={"User-Agent": f"inference-svc/{__version__}"}
        | ({"Authorization": authorization} if authorization else {}),
    )


def make_like(session: aiohttp.ClientSession) -> aiohttp.ClientSession:
    """A session as `make_session` makes it, with the headers of `session`, that uses no connection twice.

    For calls that a server may not have: one that leaves their body unread would take it for the next request (W65).
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True, resolver=Resolver()),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        headers=session.headers,
    )


def no_connection(error: aiohttp.ClientConnectorError) -> str:
    """Why there is no connection, in the system's words: `connection refused`."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", error.certificate_error)
        return f"its certificate is not believed: {reason}"
    number = error.os_error.errno
    if number is not None and number > 0:
        return os.strerror(number).lower()
    return error.os_error.strerror or str(error.os_error)  # a resolver's numbers are below 0, and none of the system's


class AnswerTooLarge(aiohttp.ClientPayloadError):
    """A body was longer than its reader allows."""


async def read_bounded(answer: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """The whole body of `answer`, which one `read(n)` is not: it gives what has come so far (W14).

    Raises:
        AnswerTooLarge: It is longer than `limit_bytes`.
        aiohttp.ClientError: The connection broke.
    """
    parts, size = [], 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > limit_bytes:
            raise AnswerTooLarge(f"a body of more than {limit_bytes} bytes")
        parts.append(part)
    return b"".join(parts)
