"""Asking the server how it is: are its models there, are they the right ones, and is it really ours that answers?"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import psutil

from babysitter import ports
from babysitter.identity import Identity
from common.discovery.model_list import MODELS_LIMIT_BYTES, parse_models
from common.http.client import no_connection, read_bounded
from common.wire.base import ModelObject

MODELS_PATHS = ("/v1/models", "/models")
JSON_LIMIT_BYTES = 1 << 20
"""Of what goes into the state file."""
ABSENT = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED})
"""Statuses by which a server says that it has no such call."""


class NotReady(Exception):
    """The server did not answer as it should; the text says what it did."""


class NotListening(NotReady):
    """Nobody took the connection, or a stranger did."""


@dataclass(frozen=True, slots=True)
class ServerProbe:
    """Looks at one server.

    Args:
        session: The process's session.
        timeout_s: Of one look.
        expected: Ids that must all be served.
        configured: Ids of a server whose models call tells none; it is ready when `/health` is 200.
        health_path: Must be 200 before anything else counts, where the server has it; empty: is not asked.
        must_have_health: A server without it is not ready.
        check: Raises `NotReady` while something else than the server keeps it from being ready.
    """

    session: aiohttp.ClientSession
    timeout_s: float
    expected: Sequence[str] = ()
    configured: Sequence[str] = ()
    health_path: str = ""
    must_have_health: bool = False
    check: Callable[[], None] = lambda: None
    _answers: dict[str, tuple[bytes, tuple[ModelObject, ...]]] = field(default_factory=dict)
    """The last answer at each path with its models: a long list is read again only when it changed."""

    async def look(self, base_url: str) -> tuple[ModelObject, ...]:
        """The model objects that the server at `base_url` serves.

        Raises:
            NotReady: It does not serve, or not what it should.
        """
        self.check()
        try:
            async with asyncio.timeout(self.timeout_s):
                models = await self._models(base_url)
        except TimeoutError:
            raise NotReady(f"no answer within {self.timeout_s:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise NotListening(f"{no_connection(error)} at {error.host}:{error.port}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NotReady(f"{type(error).__name__}: {error}") from error
        served = {model["id"] for model in models}
        missing = [name for name in self.expected if name not in served]
        if missing:
            raise NotReady(f"serves {', '.join(sorted(served))}, not the expected {', '.join(missing)}")
        return models

    async def _models(self, base_url: str) -> tuple[ModelObject, ...]:
        refusals = []
        if self.health_path:
            status, _ = await self._get(base_url + self.health_path)
            if status != HTTPStatus.OK and (self.must_have_health or status not in ABSENT):
                raise NotReady(f"{self.health_path}: status {status}")
        for path in MODELS_PATHS:
            status, raw = await self._get(base_url + path)
            try:
                models = self._read(path, raw) if status == HTTPStatus.OK else ()
            except ValueError as error:
                refusals.append(f"{path}: {error}")
                continue
            if models:
                return models
            refusals.append(f"{path}: " + ("no model" if status == HTTPStatus.OK else f"status {status}"))
        if self.configured:
            status, _ = await self._get(f"{base_url}/health")
            if status == HTTPStatus.OK:
                return tuple({"id": name, "object": "model"} for name in self.configured)
            refusals.append(f"/health: status {status}")
        raise NotReady("; ".join(refusals))

    def _read(self, path: str, raw: bytes) -> tuple[ModelObject, ...]:
        last = self._answers.get(path)
        if last is None or last[0] != raw:
            last = self._answers[path] = (raw, parse_models(raw))
        return last[1]

    async def _get(self, url: str) -> tuple[int, bytes]:
        async with self.session.get(url, allow_redirects=False) as answer:
            return answer.status, await read_bounded(answer, MODELS_LIMIT_BYTES)


@dataclass(frozen=True, slots=True)
class ProcessProbe(ServerProbe):
    """Looks at a server that speaks no HTTP: it runs, as its process tells, and with `listens` it has its port."""

    listens: bool = False

    async def look(self, base_url: str) -> tuple[ModelObject, ...]:
        """No models.

        Raises:
            NotListening: It does not listen yet.
        """
        port = urlsplit(base_url).port
        if self.listens and port is not None and not await asyncio.to_thread(ports.listens, port):
            raise NotListening(f"nobody listens at port {port}")
        return ()


async def fetch_json(session: aiohttp.ClientSession, url: str, *, timeout_s: float) -> Any:
    """The JSON that `url` answers, or None when it does not."""
    try:
        async with session.get(url, allow_redirects=False, timeout=aiohttp.ClientTimeout(total=timeout_s)) as answer:
            raw = await read_bounded(answer, JSON_LIMIT_BYTES)
            return msgspec.json.decode(raw) if answer.status == HTTPStatus.OK else None
    except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
        return None


def stranger_on_port(port: int, ours: Callable[[], Iterable[Identity]]) -> str | None:
    """Who listens on `port` when it is none of `ours` (A14, A15); None when it is, or cannot be seen.

    A listener that this user may not look into (another user's, another container's) cannot be told from ours.
    """
    try:
        listeners = [
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        ]
    except psutil.Error:
        return None
    pids = {pid for pid in listeners if pid}
    if not pids or not pids.isdisjoint(process.pid for process in ours()):
        return None
    pid = min(pids)
    try:
        command = " ".join(psutil.Process(pid).cmdline())[:80]
    except psutil.Error:
        return None
    return f"pid {pid} ({command})"
