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

    other: asyncio.WriteTransport | None = None
    early = b""
    """What came before there was another."""

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if self.other is None:
            self.early += data
        else:
            self.other.write(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the loop's call
        """The other goes too."""
        if self.other is not None:
            self.other.close()


class Client(Side):
    """A client's connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Have one of its own to the backend."""
        self.task = asyncio.ensure_future(self._connect(cast("asyncio.Transport", transport)))

    async def _connect(self, mine: asyncio.Transport) -> None:
        backend = Side()
        backend.other = mine
        port = int(sys.argv[2])
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: backend, "127.0.0.1", port)
        if mine.is_closing():
            transport.close()
            return
        if self.early:
            transport.write(self.early)
        self.other = transport


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


uvloop.run(main())
