"""Calls to the suite's services: one session, every fault a `Problem` that says what to do next."""

from __future__ import annotations  # types of what is imported late

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from common.exits import ConfigurationError
from common.wire.base import JsonObject
from ctl import late
from ctl.codes import Code
from ctl.problem import Problem
from ctl.refusal import refusal

if TYPE_CHECKING:
    import ssl

    import aiohttp

    from common.http import client, tls
else:
    aiohttp, client, tls = map(late.module, ("aiohttp", "common.http.client", "common.http.tls"))

CALL_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 2.0
ANSWER_LIMIT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """A service, and where it may be asked.

    `urls` are alternatives, tried in turn; `option` is the flag that sets them, `secret` the flag of the token.
    """

    name: str
    urls: tuple[str, ...]
    option: str
    token: str | None = None
    secret: str = "--token-file"  # noqa: S105 - a flag's name

    @property
    def url(self) -> str:
        """The first address."""
        return self.urls[0]


class Api:
    """Calls over one session.

    Args:
        session: The command's session.
        tls: What it checks services on https with; None for the system's CAs.
    """

    def __init__(self, session: aiohttp.ClientSession, tls: ssl.SSLContext | None = None) -> None:
        self._session = session
        self.tls = tls

    async def get(self, place: Place, path: str, *, params: Mapping[str, str] | None = None) -> JsonObject:
        """`GET path`, a JSON object.

        Raises:
            Problem: No answer, or one that is no success or no object.
        """
        return await self.call(place, "GET", path, params=params)

    async def call(
        self,
        place: Place,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> JsonObject:
        """One call, at each address in turn until one answers; the answer, a JSON object.

        Raises:
            Problem: No answer, or one that is no success or no object.
        """
        async with self.open(
            place, method, path, body=body, params=params, headers=headers, total_s=timeout_s
        ) as answer:
            content = _parsed(await client.read_bounded(answer, ANSWER_LIMIT_BYTES))
        if not isinstance(content, dict):
            raise Problem(
                f"{place.name} answers {path} with something else than JSON; is it at {place.url}?",
                hint=f"say where it is with {place.option}" if place.option else "",
            )
        return content

    async def text(self, place: Place, path: str) -> str:
        """`GET path`, whatever text it is.

        Raises:
            Problem: No answer, or one that is no success.
        """
        async with self.open(place, "GET", path, total_s=CALL_TIMEOUT_S) as answer:
            return (await client.read_bounded(answer, ANSWER_LIMIT_BYTES)).decode("utf-8", "replace")

    @asynccontextmanager
    async def open(
        self,
        place: Place,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        total_s: float | None = None,
        silence_s: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The successful answer to a call, its body still to be read; faults while it is read are `Problem`s too.

        `total_s` is for all of it, `silence_s` for each wait for bytes; None: no limit.

        Raises:
            Problem: No answer, or one that is no success, or one that broke.
        """
        timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_TIMEOUT_S, sock_read=silence_s)
        reasons: list[str] = []
        for base in place.urls:
            try:
                answer = await self._session.request(
                    method,
                    base.rstrip("/") + path,
                    data=None if body is None else msgspec.json.encode(body),
                    headers={**_headers(place, has_body=body is not None), **(headers or {})},
                    params=params,
                    timeout=timeout,
                    allow_redirects=False,
                )
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                reasons.append(f"{base} ({_short(error)})")
                if method == "GET" or isinstance(error, aiohttp.ClientConnectorError):
                    continue
                break  # it may have been done: asking another address would do it twice
            async with answer:
                try:
                    if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
                        raise refusal(
                            place.name,
                            place.secret,
                            answer.status,
                            _parsed(await client.read_bounded(answer, ANSWER_LIMIT_BYTES)),
                        )
                    yield answer
                except (aiohttp.ClientError, TimeoutError) as error:
                    raise Problem(
                        f"{place.name} broke off its answer to {path}: {_short(error)}", code=Code.UNREACHABLE
                    ) from error
            return
        raise Problem(
            f"{place.name} does not answer at {', '.join(reasons)}",
            hint=f"start it with 'svcctl up', or say where it is with {place.option}",
            code=Code.UNREACHABLE,
        )


def tls_files(ca: str | None, cert: str | None, key: str | None) -> tls.TlsFiles:
    """Whom svcctl believes on https, and what it shows, each where it is named."""
    named = (Path(name).expanduser() if name else None for name in (ca, cert, key))
    return tls.TlsFiles(**dict(zip(("ca", "client_cert", "client_key"), named, strict=True)))


@asynccontextmanager
async def connect(files: tls.TlsFiles) -> AsyncGenerator[Api, None]:
    """An `Api` with a session of its own.

    Raises:
        Problem: One of `files` is of no use.
    """
    try:
        context = tls.Tls(files).client if any(files) else None
    except ConfigurationError as error:
        raise Problem(str(error), code=Code.CONFIG) from error
    async with client.make_session(timeout_s=CALL_TIMEOUT_S, tls=context) as session:
        yield Api(session, context)


def _headers(place: Place, *, has_body: bool) -> dict[str, str]:
    headers = {"Content-Type": "application/json"} if has_body else {}
    return {**headers, "Authorization": f"Bearer {place.token}"} if place.token else headers


def _parsed(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw) if raw else {}
    except msgspec.DecodeError:
        return raw.decode("utf-8", "replace")


def _short(error: Exception) -> str:
    """A client fault in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return client.no_connection(error)
    return str(error) or type(error).__name__
