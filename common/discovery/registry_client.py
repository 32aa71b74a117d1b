"""Client of one or several registries: register, renew, deregister, list, follow.

Several URLs mean several registries over one store, any of which takes any call: the client stays with the one that
answers and moves on at once when it does not. Every call has a deadline; what went wrong is an exception with a name.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
import structlog
from msgspec import UNSET

from common.discovery.pause import FIRST_S, Pause
from common.http.client import read_bounded
from common.http.lines import read_lines
from common.wire.base import JsonObject, Message
from common.wire.deployment import Demand, DemandAnswer
from common.wire.keys import RouterKeys
from common.wire.leases import LeaseAnswer, LeaseCall
from common.wire.read import read_lenient
from common.wire.record import (
    FailingServers,
    HeartbeatAnswer,
    Registration,
    ServiceRecord,
    Snapshot,
    Update,
    decode_update,
    record_from_wire,
)
from common.wire.usage import UsageBatch, UsageReport, UsageTaken

log = structlog.get_logger(__name__)
Answer = TypeVar("Answer", bound=Message)

CALL_TIMEOUT_S = 2.5
"""Of one try at one registry; heartbeat + 2 tries fit into a lease of three heartbeats (Patroni's rule)."""
LEASE_TIMEOUT_S = 0.7
"""Likewise; requests wait for it."""
LONGEST_INTERVAL_S = 3600.0
"""Between heartbeats, whatever a registry says."""
WATCH_SILENCE_S = 45.0
"""A watch that says nothing for so long is dead; the registry beats every 10 s."""
WATCH_LINE_LIMIT_BYTES = 64 << 20
"""Of one line, and of any other answer: a snapshot of 10,000 records with their reports is about 20 MiB."""


_TRY_AGAIN = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.MISDIRECTED_REQUEST)


class RegistryError(Exception):
    """Base of what can go wrong."""


class RegistryUnavailable(RegistryError):
    """No registry gave an answer of use; try again later."""


class UnknownService(RegistryError):
    """404: the registry does not know the name; register again."""


class StaleIncarnation(RegistryError):
    """409: another process owns the name now; stop claiming it."""


class RegistrationRefused(RegistryError):
    """4xx: the registry will not take this record; the text says why. Repeating cannot help."""


class WatchUnsupported(RegistryError):
    """The registry is of the old kind and has no watch; poll it."""


class RegistryClient:
    """Talks to the registries at `urls` over a shared session.

    Args:
        urls: Base URLs, without a trailing slash.
        session: The process's session.
        token: Bearer token, or None.
        first: Index of the URL tried first; None takes one at random, so that a fleet's clients spread.
        watching_as: What the watcher says of itself (parameters of the watch).
    """

    def __init__(
        self,
        urls: Sequence[str],
        session: aiohttp.ClientSession,
        *,
        token: str | None = None,
        first: int | None = None,
        watching_as: Mapping[str, str] | None = None,
    ) -> None:
        if not urls:
            raise ValueError("at least one registry URL is needed")
        self._urls = [url.rstrip("/") for url in urls]
        self._session = session
        self._watching_as = dict(watching_as or {})
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._current = random.randrange(len(urls)) if first is None else first  # noqa: S311 - spreads load, no secret
        self.least_interval_s = 0.0
        """Between two heartbeats of one record, as the registry told last: of more of them it has enough to do."""

    @property
    def url(self) -> str:
        """The registry in use."""
        return self._urls[self._current]

    async def register(self, registration: Registration) -> JsonObject:
        """Register a service; returns the registry's answer, an ancestor's perhaps.

        Raises:
            StaleIncarnation: Another process owns the name.
            RegistrationRefused: The record is not acceptable.
            RegistryUnavailable: No registry answered; or what answered knows no `/services` and is no registry.
        """
        try:
            answer = await self._call("POST", "/services", registration)
        except UnknownService as error:
            raise RegistryUnavailable(f"{self.url} is no registry: {error}") from error
        self._hear(read_lenient(HeartbeatAnswer, answer))
        return answer

    async def renew(self, name: str, report: Message) -> HeartbeatAnswer:
        """Send a heartbeat with `report` as its body; returns the registry's answer.

        Raises:
            UnknownService: Register again.
            StaleIncarnation: Another process owns the name.
            RegistrationRefused: The report is not acceptable.
            RegistryUnavailable: No registry answered.
        """
        answer = await self._call("POST", f"/services/{quote(name, safe='')}/heartbeat", report)
        told = read_lenient(HeartbeatAnswer, answer)
        self._hear(told)
        return told

    def _hear(self, told: HeartbeatAnswer) -> None:
        if told.heartbeat_interval_s is not None:
            least_s = 0.0 if told.heartbeat_interval_s is UNSET else told.heartbeat_interval_s
            self.least_interval_s = min(max(0.0, least_s), LONGEST_INTERVAL_S)

    async def deregister(self, name: str, *, instance_id: str | None = None) -> None:
        """Remove a record; one that is already gone is fine.

        Raises:
            RegistrationRefused: The registry does not let us.
            RegistryUnavailable: No registry answered; the lease will end by itself.
        """
        query = f"?instance_id={quote(instance_id, safe='')}" if instance_id else ""
        try:
            await self._call("DELETE", f"/services/{quote(name, safe='')}{query}")
        except (UnknownService, StaleIncarnation):
            log.debug("registry.already_gone", name=name)

    async def complain(self, router: str, failing: Mapping[str, str]) -> None:
        """Tell every registry which servers nothing comes from, with reasons; one that does not take it is left alone.

        Several registries over one store share records, but not this: any of them may get the babysitter's heartbeat.
        """
        for url in self._urls:
            try:
                await self._call_one(
                    url, "POST", f"/v1/routers/{quote(router, safe='')}/failing", FailingServers(failing=dict(failing))
                )
            except (aiohttp.ClientError, TimeoutError, UnicodeError, RegistryError) as error:
                log.debug("registry.complaint_not_taken", url=url, reason=str(error) or type(error).__name__)

    async def tell_demand(self, router: str, demand: Demand) -> DemandAnswer:
        """Tell the registry what is asked of deployments' models; returns how these stand.

        Raises:
            UnknownService: The registry has no such call.
            StaleIncarnation: It refuses.
            RegistrationRefused: Likewise.
            RegistryUnavailable: No registry answered, or not as it should.
        """
        answer = await self._call("POST", f"/v1/routers/{quote(router, safe='')}/demand", demand)
        return self._read(DemandAnswer, answer)

    async def tell_usage(self, router: str, batch: UsageBatch) -> UsageTaken:
        """Tell the registry what was used; one that was told before counts once.

        Raises:
            UnknownService: The registry has no such call.
            StaleIncarnation: It refuses.
            RegistrationRefused: Likewise.
            RegistryUnavailable: No registry answered, or not as it should.
        """
        answer = await self._call("POST", f"/v1/routers/{quote(router, safe='')}/usage", batch)
        return self._read(UsageTaken, answer)

    async def usage(self, query: Mapping[str, str]) -> UsageReport:
        """What was used (`GET /api/v1/usage`).

        Raises:
            UnknownService: The registry has no such call.
            StaleIncarnation: It refuses.
            RegistrationRefused: Likewise, or the query is wrong.
            RegistryUnavailable: No registry answered, or not as it should.
        """
        return self._read(UsageReport, await self._call("GET", f"/api/v1/usage?{urlencode(query)}"))

    def _read(self, kind: type[Answer], answer: JsonObject) -> Answer:
        try:
            return msgspec.convert(answer, kind)
        except msgspec.ValidationError as error:
            raise RegistryUnavailable(f"{self.url}: its answer cannot be read: {error}") from error

    async def keys(self, version: str, wait_s: int) -> RouterKeys:
        """Every API key, once they are others than those of `version`, or after `wait_s`.

        Raises:
            RegistryError: The registry has no such call, refuses it, or none answered as it should.
        """
        path = f"/v1/keys?version={quote(version, safe='')}&wait={wait_s}"
        answer = await self._call("GET", path, timeout_s=wait_s + CALL_TIMEOUT_S)
        try:
            return msgspec.convert(answer, RouterKeys)
        except msgspec.ValidationError as error:
            raise RegistryUnavailable(f"{self.url}: its keys cannot be read: {error}") from error

    async def lease(self, router: str, call: LeaseCall) -> LeaseAnswer:
        """Tell what this router's workers hold and used of keys' limits; returns what they are granted.

        Raises:
            RegistryError: No registry that leads answered in time, or not as it should.
        """
        path = f"/v1/routers/{quote(router, safe='')}/leases"
        answer = await self._call("POST", path, call, timeout_s=LEASE_TIMEOUT_S)
        try:
            return msgspec.convert(answer, LeaseAnswer)
        except msgspec.ValidationError as error:
            raise RegistryUnavailable(f"{self.url}: its leases cannot be read: {error}") from error

    async def list(self) -> list[ServiceRecord]:
        """Every record.

        Raises:
            RegistryUnavailable: No registry answered, or not with a list.
        """
        try:
            answer = await self._call("GET", "/services")
        except (UnknownService, StaleIncarnation, RegistrationRefused) as error:
            raise RegistryUnavailable(f"{self.url} does not list services: {error}") from error
        listed = answer.get("services")
        if not isinstance(listed, list):
            raise RegistryUnavailable(f"{self.url} does not list services: no 'services' in its answer")
        records = []
        for item in listed:
            try:
                records.append(record_from_wire(item))
            except msgspec.ValidationError as error:
                log.warning("registry.record_unreadable", reason=str(error))
        return records

    async def watch(self) -> AsyncGenerator[Update, None]:
        """One watch stream, from a snapshot on; ends by raising.

        Raises:
            WatchUnsupported: The registry has no watch.
            RegistryUnavailable: The stream ended, went silent, or never began.
        """
        url = self.url
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_TIMEOUT_S, sock_read=WATCH_SILENCE_S)
        try:
            async with self._session.get(
                f"{url}/v1/watch",
                params=self._watching_as,
                headers=self._headers,
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                if answer.status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
                    raise WatchUnsupported(url)
                if answer.status != HTTPStatus.OK:
                    raise RegistryUnavailable(f"{url}: watch answered {answer.status}")
                async for line in read_lines(answer.content, WATCH_LINE_LIMIT_BYTES):
                    yield decode_update(line)
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, ValueError) as error:
            self._move_on(url)
            raise RegistryUnavailable(f"{url}: watch broke: {str(error) or type(error).__name__}") from error
        except RegistryUnavailable:
            self._move_on(url)
            raise
        self._move_on(url)
        raise RegistryUnavailable(f"{url}: watch ended")

    async def follow(
        self, *, poll_interval_s: float, retry_s: float = FIRST_S
    ) -> AsyncGenerator[Update | RegistryError, None]:
        """The table for ever: the watch where there is one, else polling; faults are yielded, never raised.

        A consumer sees `Snapshot`s, changes, and a `RegistryUnavailable` whenever contact is lost. The pauses
        grow from `retry_s` (common/discovery/pause.py).
        """
        retry = Pause(retry_s)
        while True:
            try:
                async with aclosing(self.watch()) as updates:
                    async for update in updates:
                        retry.reached()
                        yield update
            except WatchUnsupported:
                try:
                    yield Snapshot(epoch="", revision=0, services=await self.list())
                    retry.reached()
                    await asyncio.sleep(poll_interval_s)
                    continue
                except RegistryUnavailable as error:
                    yield error
            except RegistryUnavailable as error:
                yield error
            await asyncio.sleep(retry.next_s())

    async def _call(
        self, method: str, path: str, body: Message | None = None, *, timeout_s: float | None = None
    ) -> JsonObject:
        """One call, at each registry in turn until one answers; `timeout_s` for each, else `CALL_TIMEOUT_S`."""
        reasons = []
        for _ in self._urls:
            url = self.url
            try:
                return await self._call_one(url, method, path, body, timeout_s)
            except (aiohttp.ClientError, TimeoutError, UnicodeError, RegistryUnavailable) as error:
                reasons.append(f"{url}: {str(error) or type(error).__name__}")
                self._move_on(url)
        raise RegistryUnavailable("; ".join(reasons))

    async def _call_one(
        self, url: str, method: str, path: str, body: Message | None, timeout_s: float | None = None
    ) -> JsonObject:
        data = None if body is None else msgspec.json.encode(body)
        headers = self._headers if data is None else {**self._headers, "Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S if timeout_s is None else timeout_s)
        async with self._session.request(
            method, url + path, data=data, headers=headers, timeout=timeout, allow_redirects=False
        ) as answer:
            raw = await read_bounded(answer, WATCH_LINE_LIMIT_BYTES)
            status = answer.status
        try:
            content = msgspec.json.decode(raw) if raw else {}
        except msgspec.DecodeError:
            content = {}
        reason = str(content.get("error", "")) if isinstance(content, dict) else ""
        if status < HTTPStatus.MULTIPLE_CHOICES and isinstance(content, dict):
            return content
        if status == HTTPStatus.NOT_FOUND:
            raise UnknownService(reason or path)
        if status == HTTPStatus.CONFLICT:
            raise StaleIncarnation(reason or path)
        if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _TRY_AGAIN:
            raise RegistrationRefused(f"{url} answered {status}: {reason}")
        raise RegistryUnavailable(f"answered {status}: {reason}")

    def _move_on(self, failed: str) -> None:
        """Use the next registry, unless another call already moved on."""
        if self.url == failed:
            self._current = (self._current + 1) % len(self._urls)
