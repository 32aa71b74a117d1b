"""etcd's v3 JSON gateway over aiohttp: calls with deadlines, at whichever member answers.

Keys, values and 64-bit numbers travel as etcd's gateway wants them (base64, decimal strings); callers see str, bytes
and int.
"""

import base64
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from common.http.client import read_bounded
from registry.core.store import StoreFull, StoreUnavailable

CALL_TIMEOUT_S = 2.0
"""Of one call, all members together; less than our clients wait for us (docs/faults.md C10)."""
SHORTEST_TRY_S = 0.05
_LINE_LIMIT_BYTES = 64 << 20


class Compacted(Exception):
    """The revision asked for is gone; take a snapshot."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as etcd has it. `lease` is 0 for none."""

    key: str
    value: bytes
    mod_revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event of a watch; `value` of a deletion is empty."""

    deleted: bool
    item: KeyValue


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """What one revision or several did."""

    revision: int
    events: tuple[WatchEvent, ...]


def to_base64(key: str) -> str:
    """A key or value for the gateway."""
    return base64.b64encode(key.encode()).decode()


def range_end(prefix: str) -> str:
    """The end of the range of all keys that begin with `prefix`, for the gateway."""
    raw = prefix.encode()
    return base64.b64encode(raw[:-1] + bytes([raw[-1] + 1])).decode()


def key_value(raw: Mapping[str, Any]) -> KeyValue:
    """Read a `kv` of the gateway."""
    return KeyValue(
        key=base64.b64decode(raw["key"]).decode(),
        value=base64.b64decode(raw.get("value", "")),
        mod_revision=int(raw.get("mod_revision", 0)),
        lease=int(raw.get("lease", 0)),
    )


class Gateway:
    """Calls at one of several members.

    Args:
        endpoints: `host:port` of the members, in order of preference.
        session: Its own.
    """

    def __init__(self, endpoints: Sequence[str], session: aiohttp.ClientSession) -> None:
        self._urls = [f"http://{endpoint}/v3" for endpoint in endpoints]
        self._session = session
        self._current = 0

    async def close(self) -> None:
        """Let go of the connections."""
        await self._session.close()

    async def call(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One call; tries each member once.

        Raises:
            StoreUnavailable: None gave an answer of use.
            StoreFull: etcd's quota is reached.
        """
        (answer,) = await self.call_many(path, [body])
        return answer

    async def call_many(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Several requests in one HTTP call, for the streaming methods; the answers are in the same order.

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
                answers = await self._post(url + path, data, (deadline - time.monotonic()) / (tries_left + 1))
            except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
                reasons.append(f"{url}: {str(error) or type(error).__name__}")
                if not broken and _was_connected(error):
                    broken = True
                    tries_left += 1
            else:
                if len(answers) == len(bodies):
                    return answers
                reasons.append(f"{url}: {len(answers)} answers to {len(bodies)} requests")
            self._move_on(url)
        raise StoreUnavailable("; ".join(reasons))

    async def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[WatchBatch]:
        """Changes from `start_revision` on; ends by raising.

        Raises:
            Compacted: `start_revision` is gone.
            StoreUnavailable: The stream broke, ended or went silent.
        """
        url = self._urls[self._current]
        request = {
            "create_request": {
                "key": to_base64(prefix),
                "range_end": range_end(prefix),
                "start_revision": start_revision,
                "progress_notify": True,
            }
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_TIMEOUT_S)
        try:
            async with self._session.post(f"{url}/watch", data=msgspec.json.encode(request), timeout=timeout) as answer:
                async for line in _lines(answer.content):
                    result = msgspec.json.decode(line).get("result", {})
                    if int(result.get("compact_revision", 0)):
                        raise Compacted(str(result["compact_revision"]))
                    if result.get("canceled"):
                        raise StoreUnavailable(f"{url}: watch cancelled: {result.get('cancel_reason', '')}")
                    if result.get("created"):
                        continue  # its revision is etcd's now; events up to there are still to come
                    events = tuple(
                        WatchEvent(event.get("type") == "DELETE", key_value(event["kv"]))
                        for event in result.get("events", ())
                    )
                    yield WatchBatch(int(result.get("header", {}).get("revision", 0)), events)
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, ValueError, KeyError) as error:
            self._move_on(url)
            raise StoreUnavailable(f"{url}: watch broke: {error!r}") from error
        self._move_on(url)
        raise StoreUnavailable(f"{url}: watch ended")

    async def _post(self, url: str, data: bytes, timeout_s: float) -> list[dict[str, Any]]:
        timeout = aiohttp.ClientTimeout(total=max(timeout_s, SHORTEST_TRY_S))
        async with self._session.post(url, data=data, timeout=timeout, allow_redirects=False) as answer:
            raw = await read_bounded(answer, _LINE_LIMIT_BYTES)
        answers = [msgspec.json.decode(line) for line in raw.splitlines() if line]
        for content in answers:
            error = content.get("error")
            if error is None:
                continue
            said = str(error.get("message", error) if isinstance(error, dict) else error)
            if "space exceeded" in said or "NOSPACE" in said:
                raise StoreFull(f"etcd: {said}")
            raise aiohttp.ClientError(said)
        return answers

    def _move_on(self, failed: str) -> None:
        if self._urls[self._current] == failed:
            self._current = (self._current + 1) % len(self._urls)


def _was_connected(error: Exception) -> bool:
    broke = isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError)
    return broke and not isinstance(error, aiohttp.ClientConnectorError | TimeoutError)


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length up to the limit; `readline` would stop at 512 KiB."""
    pending = bytearray()
    async for chunk in stream.iter_any():
        pending += chunk
        if b"\n" not in chunk:
            if len(pending) > _LINE_LIMIT_BYTES:
                raise ValueError(f"a line of etcd's watch is longer than {_LINE_LIMIT_BYTES} bytes")
            continue
        *whole, rest = bytes(pending).split(b"\n")
        pending = bytearray(rest)
        for line in whole:
            if line:
                yield line
