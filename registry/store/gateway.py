"""etcd's v3 JSON gateway over aiohttp: calls with deadlines, at whichever member answers, as the user that etcd wants.

In the gateway's JSON, keys and values are base64 and 64-bit numbers are strings; msgspec reads and writes both by itself.
A refusal is known by its gRPC code, never by its text, which changes between versions of etcd.
"""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import aiohttp
import msgspec
import structlog

from common.http.client import read_bounded
from common.http.lines import read_lines
from registry.core.store import StoreFull, StoreUnavailable

log = structlog.get_logger(__name__)
CALL_TIMEOUT_S = 2.0
"""Of one call, all members together; less than our clients wait for us (docs/faults.md C10)."""
SHORTEST_TRY_S = 0.05
PAGE = 500
"""Keys in one answer: about a megabyte of records."""
READ_AT_ONCE_BYTES = 512
"""Of the requests of a streaming call (Go's `json.Decoder`). Once the gateway has begun to answer, what it has not read is lost (HTTP/1.1 in
Go's `net/http`): of 300 leases in one call, 19 were renewed in one call of three (etcd 3.4.23)."""
_LINE_LIMIT_BYTES = 64 << 20
Request = Mapping[str, object]
"""A request's JSON; `bytes` in it travel as base64."""


class GrpcCode(IntEnum):
    """gRPC's status codes, as far as they mean something to us (grpc.io/docs/guides/status-codes)."""

    INVALID_ARGUMENT = 3
    """Of `authenticate`: wrong user or password. Of other calls: no user, or one of before a change of users."""
    NOT_FOUND = 5
    """Of a write: its lease has ended."""
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    """The quota is reached, or more requests are under way than etcd takes."""
    FAILED_PRECONDITION = 9
    """Of `authenticate`: etcd has no authentication."""
    UNAUTHENTICATED = 16
    """The token has ended: unused for five minutes, or of before a restart or a change of password."""


class Compacted(Exception):
    """The revision asked for is gone; take a snapshot."""


class StoreRefused(StoreUnavailable):
    """etcd knows us and will not have it: a wrong password, or a user without the right."""


class NotFound(StoreUnavailable):
    """What the request names is not there: the lease of a write has ended."""


class KeyValue(msgspec.Struct, frozen=True):
    """One key as etcd has it. `lease` is 0 for none."""

    key: bytes
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    lease: int = 0

    @property
    def name(self) -> str:
        """The key as text."""
        return self.key.decode()


class WatchEvent(msgspec.Struct, frozen=True):
    """One event of a watch; `value` of a deletion is empty."""

    kv: KeyValue
    type: str = "PUT"

    @property
    def deleted(self) -> bool:
        """Whether the key went."""
        return self.type == "DELETE"


class Header(msgspec.Struct, frozen=True):
    """At which revision etcd answered."""

    revision: int = 0


class _Range(msgspec.Struct, frozen=True):
    kvs: list[KeyValue] = []


class _Response(msgspec.Struct, frozen=True):
    """One operation of a transaction."""

    response_range: _Range = _Range()


class StreamResult(msgspec.Struct, frozen=True, rename={"ttl": "TTL"}):
    """One message of a stream: of a watch, or a lease's renewal (`ttl` None: it has ended)."""

    header: Header = Header()
    ttl: int | None = None
    compact_revision: int = 0
    created: bool = False
    canceled: bool = False
    cancel_reason: str = ""
    events: list[WatchEvent] = []


class _StreamError(msgspec.Struct, frozen=True):
    grpc_code: int = 0
    message: str = ""


class Reply(msgspec.Struct, frozen=True, rename={"id": "ID"}):
    """An answer of the gateway: what any of our calls reads of it."""

    header: Header = Header()
    kvs: list[KeyValue] = []
    count: int = 0
    succeeded: bool = False
    responses: list[_Response] = []
    id: int = 0
    token: str = ""
    result: StreamResult = StreamResult()
    error: _StreamError | str | None = None
    code: int = 0
    message: str = ""


class _Refusal(Exception):
    """etcd answered with a code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


_decode = msgspec.json.Decoder(Reply, strict=False).decode


@dataclass(frozen=True, slots=True)
class Login:
    """The user that etcd wants to see."""

    user: str
    password: str = field(repr=False)


def range_end(prefix: str) -> bytes:
    """The end of the range of all keys that begin with `prefix`."""
    raw = prefix.encode()
    return raw[:-1] + bytes([raw[-1] + 1])


class Gateway:
    """Calls at one of several members.

    Args:
        urls: Base URLs of the members, in order of preference.
        session: Its own; checks certificates and shows ours.
        login: Whom to be, or None where etcd asks for nobody.
    """

    def __init__(self, urls: Sequence[str], session: aiohttp.ClientSession, login: Login | None = None) -> None:
        self._urls = [f"{url}/v3" for url in urls]
        self._session = session
        self._login = login
        self._token: str | None = None
        self._current = 0

    async def close(self) -> None:
        """Let go of the connections."""
        await self._session.close()

    async def call(self, path: str, body: Request) -> Reply:
        """One call; tries each member once.

        Raises:
            StoreUnavailable: None gave an answer of use.
            StoreRefused: etcd will not have it from us.
            StoreFull: etcd's quota is reached.
            NotFound: The lease of a write has ended.
        """
        (reply,) = await self.call_many(path, [body])
        return reply

    async def call_many(self, path: str, bodies: Sequence[Request]) -> list[Reply]:
        """Several requests in one HTTP call, for the streaming methods: `READ_AT_ONCE_BYTES` of them; the answers are in the same order.

        A broken connection gets one more try: it may have been an idle one of an etcd that has restarted since, and
        every write of ours compares before it sets, so that a repeat is found out.
        """
        data = b"".join(msgspec.json.encode(body) for body in bodies)
        deadline = time.monotonic() + CALL_TIMEOUT_S
        reasons = []
        tries_left = len(self._urls)
        broken = False
        while tries_left:
            tries_left -= 1
            url = self._urls[self._current]
            try:
                replies = await self._ask(url, path, data, (deadline - time.monotonic()) / (tries_left + 1))
            except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, _Refusal) as error:
                if isinstance(error, _Refusal):
                    _judge(error)
                reasons.append(f"{url}: {str(error) or type(error).__name__}")
                if not broken and _was_connected(error):
                    broken = True
                    tries_left += 1
            else:
                if len(replies) == len(bodies):
                    return replies
                reasons.append(f"{url}: {len(replies)} answers to {len(bodies)} requests")
            self._move_on(url)
        raise StoreUnavailable("; ".join(reasons))

    async def read_all(self, prefix: str) -> tuple[list[KeyValue], int]:
        """Every key that begins with `prefix` at one revision, and that revision; in pages, as each call has its time.

        Raises:
            StoreUnavailable: As `call`; or the revision is gone already.
        """
        items: list[KeyValue] = []
        start, revision = prefix.encode(), 0
        while True:
            page = {"key": start, "range_end": range_end(prefix), "limit": PAGE, "revision": revision}
            reply = await self.call("/kv/range", page)
            items += reply.kvs
            revision = revision or reply.header.revision
            if len(reply.kvs) < PAGE:
                return items, revision
            start = reply.kvs[-1].key + b"\0"

    async def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[StreamResult]:
        """Changes from `start_revision` on; ends by raising.

        Raises:
            Compacted: `start_revision` is gone.
            StoreUnavailable: The stream broke, ended or went silent.
        """
        url = self._urls[self._current]
        request = {
            "create_request": {
                "key": prefix.encode(),
                "range_end": range_end(prefix),
                "start_revision": start_revision,
                "progress_notify": True,
            }
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_TIMEOUT_S)
        try:
            async with self._session.post(
                f"{url}/watch",
                data=msgspec.json.encode(request),
                headers=self._headers(),
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                async for line in read_lines(answer.content, _LINE_LIMIT_BYTES):
                    result = _decode(line).result
                    if result.compact_revision:
                        raise Compacted(str(result.compact_revision))
                    if result.canceled:
                        raise StoreUnavailable(f"{url}: watch cancelled: {result.cancel_reason}")
                    if not result.created:  # its revision is etcd's now; events up to there are still to come
                        yield result
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:  # a DecodeError is a ValueError
            self._move_on(url)
            raise StoreUnavailable(f"{url}: watch broke: {error!r}") from error
        self._move_on(url)
        raise StoreUnavailable(f"{url}: watch ended")

    async def _ask(self, url: str, path: str, data: bytes, timeout_s: float) -> list[Reply]:
        """One call at one member; logs in before the first, and again when the token has ended."""
        login = self._login
        if login is not None and self._token is None:
            await self._log_in(login, url, timeout_s)
        try:
            return await self._post(url + path, data, timeout_s)
        except _Refusal as refusal:
            if login is None or refusal.code not in (GrpcCode.UNAUTHENTICATED, GrpcCode.INVALID_ARGUMENT):
                raise
        await self._log_in(login, url, timeout_s)
        return await self._post(url + path, data, timeout_s)

    async def _log_in(self, login: Login, url: str, timeout_s: float) -> None:
        body = {"name": login.user, "password": login.password}
        self._token = None
        try:
            (reply,) = await self._post(f"{url}/auth/authenticate", msgspec.json.encode(body), timeout_s)
        except _Refusal as refusal:
            if refusal.code == GrpcCode.INVALID_ARGUMENT:
                raise StoreRefused(f"etcd does not take user {login.user!r}: {refusal}") from None
            if refusal.code != GrpcCode.FAILED_PRECONDITION:
                raise
            log.warning("store.no_authentication", url=url, user=login.user)
            self._token = ""
        else:
            self._token = reply.token

    def _headers(self) -> dict[str, str]:
        return {"Authorization": self._token} if self._token else {}

    async def _post(self, url: str, data: bytes, timeout_s: float) -> list[Reply]:
        timeout = aiohttp.ClientTimeout(total=max(timeout_s, SHORTEST_TRY_S))
        async with self._session.post(
            url, data=data, headers=self._headers(), timeout=timeout, allow_redirects=False
        ) as answer:
            raw = await read_bounded(answer, _LINE_LIMIT_BYTES)
        replies = [_decode(line) for line in raw.splitlines() if line]
        for reply in replies:
            if isinstance(reply.error, _StreamError):
                raise _Refusal(reply.error.grpc_code, reply.error.message)
            if reply.error is not None:
                raise _Refusal(reply.code, reply.message or reply.error)
        return replies

    def _move_on(self, failed: str) -> None:
        if self._urls[self._current] == failed:
            self._current = (self._current + 1) % len(self._urls)


def _judge(refusal: _Refusal) -> None:
    """Raise what no other member would answer differently; return for what is this member's alone."""
    match refusal.code:
        case GrpcCode.NOT_FOUND:
            raise NotFound(str(refusal)) from refusal
        case GrpcCode.RESOURCE_EXHAUSTED:
            raise StoreFull(f"etcd: {refusal}") from refusal
        case GrpcCode.PERMISSION_DENIED:
            raise StoreRefused(f"etcd: {refusal}") from refusal
        case GrpcCode.UNAUTHENTICATED | GrpcCode.INVALID_ARGUMENT:
            remedy = "; if it wants a user, set etcd_user and etcd_password_file"
            raise StoreRefused(f"etcd refuses: {refusal}{remedy}") from refusal


def _was_connected(error: Exception) -> bool:
    broke = isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError)
    return broke and not isinstance(error, aiohttp.ClientConnectorError | TimeoutError)
