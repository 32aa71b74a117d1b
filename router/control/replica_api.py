"""`/api/v1/*` passed on to the registry, so that one port serves the replica API as well (`expose_replica_api`).

This is the control plane: a call here takes nothing from the data plane but the connection that it came by.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from yarl import URL

from common.http.audit import AuditLog, is_change
from common.http.errors import ApiError
from common.http.relay import pass_bytes
from router.proxy.paths import KEY_FIELD

BODY_LIMIT_BYTES = 1 << 20
HEAD_TIMEOUT_S = 20.0
"""Until the registry begins to answer; it gives the agents ten seconds."""
READING = frozenset({"GET", "HEAD"})
PATH = re.compile(r"/api/v1(?:/[A-Za-z0-9_-]+)+")
"""No dot and no escape: nothing here may lead to another path of the registry."""
PASSED_BACK = ("Content-Type", "Cache-Control", "Retry-After", "WWW-Authenticate", "X-Index", "X-Epoch")


@dataclass(frozen=True, slots=True)
class ReplicaApi:
    """Where calls go.

    Args:
        session: For all of them.
        urls: The registries.
        first: Tells the one that the router follows now.
        token: The registry's token for callers who showed a key of ours (their own is not forwarded); None: theirs is.
    """

    session: aiohttp.ClientSession
    urls: Sequence[str]
    first: Callable[[], str]
    token: str | None = None
    audit: AuditLog | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One call; what it changes is in the audit, with the key's name and the client's address as the worker tells them.

        Raises:
            ApiError: As `_pass_on`.
        """
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value
        try:
            answered = await self._pass_on(request)
            status = answered.status
        except ApiError as error:
            status = error.status
            raise
        finally:
            if self.audit is not None and is_change(request, status, {}):
                key, client = (
                    request.headers.getall(name, [""])[-1] for name in (KEY_FIELD.decode(), "X-Forwarded-For")
                )
                self.audit.note(request, status, f"key {unquote(key)}" if key else None, remote=client or None)
        return answered

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        """Ask a registry.

        Raises:
            ApiError: 404 for a path that cannot be one of its, 415 for what a page's form could send, 503 or 504 when no registry answers.
        """
        path, _, query = request.raw_path.partition("?")
        if not PATH.fullmatch(path):
            raise ApiError(404, "the replica API has no such path")
        body = await request.read()
        if request.method not in READING and body and request.content_type != "application/json":
            # The data plane forwards no Origin, by which the registry would know a page's script.
            raise ApiError(415, "Content-Type: must be application/json", field="Content-Type")
        authorization = f"Bearer {self.token}" if self.token else request.headers.get("Authorization")
        headers = {"Content-Type": "application/json"} if body else {}
        headers |= {"Authorization": authorization} if authorization else {}
        headers |= {name: request.headers[name] for name in ("X-Request-Id",) if name in request.headers}
        reason, target = "no registry", f"?{query}" if query else ""
        for url in dict.fromkeys([self.first(), *self.urls]):
            try:
                return await self._relay(request, URL(f"{url.rstrip('/')}{path}{target}", encoded=True), body, headers)
            except aiohttp.ClientConnectorError:
                reason = f"the registry at {url} cannot be reached"
        raise ApiError(503, reason, headers={"Retry-After": "5"})

    async def _relay(self, request: web.Request, url: URL, body: bytes, headers: dict[str, str]) -> web.StreamResponse:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=2.0)
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S) as deadline:
                async with self.session.request(
                    request.method,
                    url,
                    data=body or None,
                    headers=headers,
                    timeout=timeout,
                    allow_redirects=False,
                ) as answer:
                    deadline.reschedule(None)
                    kept = {name: answer.headers[name] for name in PASSED_BACK if name in answer.headers}
                    response = web.StreamResponse(status=answer.status, headers=kept)
                    await response.prepare(request)
                    if request.method != "HEAD":
                        await pass_bytes(request, answer, response)
                    return response
        except TimeoutError as error:
            raise ApiError(504, "the registry did not answer in time") from error
