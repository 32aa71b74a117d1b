"""Routers as a registry sees them: watches that are read to the last byte, and looked through for marks, but not understood.

    python -m bench.fleet.watchers COUNT REGISTRY_URL…

Each watch is that of `common.discovery.RegistryClient`: the same call, named as a router. stdout gets, for each line on stdin,
when (monotonic) each watch saw each mark since the last line.
"""

import asyncio
import json
import re
import sys
import time
from typing import cast
from urllib.parse import urlsplit

import uvloop

MARK = re.compile(rb'"restart_count":(1\d{6})')
LONGEST = 64


class Watch(asyncio.Protocol):
    """One watch."""

    def __init__(self, name: str, place: str) -> None:
        self.seen: dict[int, float] = {}
        self.received = 0
        self._tail = b""
        self._head = (
            f"GET /v1/watch?router={name}&router_url=http%3A%2F%2F127.0.0.1%3A8000 HTTP/1.1\r\nHost: {place}\r\n"
            "Accept: */*\r\n\r\n"
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._head.encode())

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        now = time.monotonic()
        text = self._tail + data
        for mark in MARK.findall(text):
            self.seen.setdefault(int(mark), now)
        self._tail = text[-LONGEST:]

    def connection_lost(self, exc: Exception | None) -> None:
        raise RuntimeError(f"a watch ended: {exc}")


async def main(count: int, urls: list[str]) -> None:
    """Watch until stdin ends."""
    loop = asyncio.get_running_loop()
    watches = []
    for number in range(count):
        parts = urlsplit(urls[number % len(urls)])
        name = f"watcher-{number}"
        _, watch = await loop.create_connection(
            lambda name=name, place=parts.netloc: Watch(name, place),  # type: ignore[misc]
            parts.hostname,
            parts.port,
        )
        watches.append(watch)
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while await orders.readline():
        told = {"seen": [one.seen for one in watches], "bytes": sum(one.received for one in watches)}
        print(json.dumps(told), flush=True)
        for one in watches:
            one.seen, one.received = {}, 0


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2:]))
