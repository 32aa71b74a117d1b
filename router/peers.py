"""The routers of the same replicas: this one's placements for the others to follow, and theirs for our workers.

A router listens on a port of its own (`share_port`), with the certificate of its other one and a token that all routers of a
fleet have. Whoever shows it gets a stream of shares (`policy/peers.py`), each with its length before it. Requests never wait for
any of it: what comes is put into the map that the workers share, and a router that is silent or gone counts for nothing.
"""

import asyncio
import secrets
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus

import aiohttp
import structlog
from aiohttp import web

from common.http.access import bearer_matches
from common.tasks import TaskScope
from router.counters import IN_FLIGHT, READ_AT_US, READING_BYTES, WORK_BYTES, SharedCounters
from router.model import Replica
from router.policy.blocks import seed_of
from router.policy.peers import SHARE_LIMIT_BYTES, TELL_S, BadShare, Heard, Load, Teller, merged
from router.sharing import RingReader, RingWriter

log = structlog.get_logger(__name__)
PATH = "/placements"
LISTENERS_MOST = 64
_BEHIND_MOST = 4
"""Shares that wait for a listener; what comes meanwhile it does not get."""
_SLOW_S = 5.0
"""A listener that takes no share for so long is sent away."""
_SILENT_S = 2.0
_AGAIN_S, _REFUSED_AGAIN_S = 1.0, 15.0
"""Until a router is asked again: one that was out of reach, and one that did not answer as it should."""
_REST = 20
"""How many times longer than a turn the pause after it is: with thousands of replicas there are fewer shares."""
_LENGTH = struct.Struct("<I")


class Peers:
    """What this router tells, and what it heard.

    Args:
        counters: The master's view of the shared map; nobody else writes its cells for peers.
        replicas: The replicas as they are now.
        token: What listeners have to show.
    """

    def __init__(self, counters: SharedCounters, replicas: Callable[[], Iterable[Replica]], token: str) -> None:
        self._counters = counters
        self._replicas = replicas
        self._token = token
        self._teller = Teller(secrets.token_hex(4))
        self._heard = Heard()
        self._tags: frozenset[int] = frozenset()
        self._own = RingReader(counters.ring(block) for block in range(counters.shape.blocks))
        self._theirs = RingWriter(counters.ring(counters.shape.peers_ring))
        self._listeners: set[asyncio.Queue[bytes]] = set()

    # What is told.

    def app(self) -> web.Application:
        """What answers at the port."""
        app = web.Application()
        app.router.add_get(PATH, self._listen)
        return app

    async def _listen(self, request: web.Request) -> web.StreamResponse:
        """`GET /placements`: every share from now on."""
        if not bearer_matches(request.headers.get("Authorization"), self._token):
            return web.Response(status=HTTPStatus.UNAUTHORIZED)
        if len(self._listeners) >= LISTENERS_MOST:
            return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE)
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        shares: asyncio.Queue[bytes] = asyncio.Queue(_BEHIND_MOST)
        self._listeners.add(shares)
        try:
            while True:
                share = await shares.get()
                await asyncio.wait_for(response.write(_LENGTH.pack(len(share)) + share), _SLOW_S)
        except (ConnectionError, TimeoutError):
            return response
        finally:
            self._listeners.discard(shares)

    async def run(self) -> None:
        """Tell and take, for ever."""
        while True:
            began = time.monotonic()
            self._turn(began)
            await asyncio.sleep(max(TELL_S, _REST * (time.monotonic() - began)))

    def _turn(self, now: float) -> None:
        slots = {seed_of(replica.id.encode()): replica.slot for replica in self._replicas()}
        self._tags = frozenset(slots)
        placed = list(self._own.news())
        share = self._teller.share({tag: self._load(slot, now) for tag, slot in slots.items()}, placed, now)
        for shares in self._listeners if share is not None else ():
            if not shares.full():
                shares.put_nowait(share or b"")
        for tag, slot in slots.items():
            requests, work, reading, read_at, head_at, head_bytes = merged(self._heard.of(tag, now), now)
            self._counters.put_peers(
                slot, (requests, work, reading, int(read_at * 1e6), int(head_at * 1e6), head_bytes)
            )

    def _load(self, slot: int, now: float) -> Load:
        counters = self._counters
        read_us, (head_us, head_bytes) = counters.latest(slot, READ_AT_US), counters.head(slot)
        return Load(
            max(0, counters.total(slot, IN_FLIGHT)),
            max(0, counters.total(slot, WORK_BYTES)),
            max(0, counters.total(slot, READING_BYTES)),
            max(0, int(now * 1e3) - read_us // 1000) if read_us else None,
            max(0, int(now * 1e3) - head_us // 1000) if head_us else None,
            max(0, head_bytes),
        )

    # What is heard.

    def follow(self, urls: Iterable[str], session: aiohttp.ClientSession, scope: TaskScope) -> None:
        """Hear each of `urls`; our own may be among them."""
        for url in urls:
            scope.spawn(f"peer {url}", self._follow(url.rstrip("/"), session))

    async def _follow(self, url: str, session: aiohttp.ClientSession) -> None:
        complained = is_us = False
        while not is_us:
            pause_s, reason = _AGAIN_S, ""
            try:
                is_us = await self._hear(url, session)
            except (BadShare, aiohttp.ClientResponseError, aiohttp.InvalidURL) as error:
                pause_s, reason = _REFUSED_AGAIN_S, str(error)
            except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError, OSError) as error:
                reason = str(error) or type(error).__name__
            if self._heard.forget(url) or not (complained or is_us):
                complained = True
                log.warning("peer.not_heard", url=url, reason=reason)
            await asyncio.sleep(0 if is_us else pause_s)

    async def _hear(self, url: str, session: aiohttp.ClientSession) -> bool:
        """Take what comes, until it ends; returns only where we heard ourselves, True.

        Raises:
            BadShare: What came is no share.
            aiohttp.ClientError: It cannot be reached, or does not let us listen.
            TimeoutError: It was silent.
            asyncio.IncompleteReadError: It ended.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENT_S, sock_read=_SILENT_S)
        headers = {"Authorization": f"Bearer {self._token}"}
        async with session.get(url + PATH, headers=headers, timeout=timeout, allow_redirects=False) as response:
            if response.status != HTTPStatus.OK:
                raise aiohttp.ClientResponseError(
                    response.request_info, response.history, status=response.status, message="not let in"
                )
            while True:
                (length,) = _LENGTH.unpack(await response.content.readexactly(_LENGTH.size))
                if length > SHARE_LIMIT_BYTES:
                    raise BadShare(f"a share of {length} bytes")
                if self._take(url, await response.content.readexactly(length)):
                    return True

    def _take(self, url: str, payload: bytes) -> bool:
        """Take one; True where it is our own."""
        router, placed = self._heard.take(url, payload, time.monotonic())
        if router == self._teller.router:
            self._heard.forget(url)
            return True
        self._pass_on(placed)
        return False

    def _pass_on(self, placed: Sequence[tuple[int, Sequence[int]]]) -> None:
        for tag, blocks in placed:
            if tag in self._tags:
                self._theirs.placed(tag, blocks)
