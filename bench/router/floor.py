"""What is left of a proxy in Python over uvloop when it reads nothing: bytes of a client go to a connection of its own to the backend, and back.

    python bench/router/floor.py PORT BACKEND_PORT

It knows no head, no length, no model and no fault: no router can be cheaper on this loop.
"""

import asyncio
import sys
from typing import cast

import uvloop


class Side(asyncio.Protocol):
    """One of two connections; what comes here is written to the other."""

    other: asyncio.WriteTransport

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        self.other.write(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the loop's call
        """The other goes too."""
        self.other.close()


class Client(Side):
    """A client's connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nothing is read until there is somebody to pass it to."""
        mine = cast("asyncio.Transport", transport)
        mine.pause_reading()
        self.task = asyncio.ensure_future(self._connect(mine))

    async def _connect(self, mine: asyncio.Transport) -> None:
        backend = Side()
        backend.other = mine
        port = int(sys.argv[2])
        self.other, _ = await asyncio.get_running_loop().create_connection(lambda: backend, "127.0.0.1", port)
        mine.resume_reading()


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


uvloop.run(main())
