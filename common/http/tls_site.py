"""Where an aiohttp application listens with TLS."""

import asyncio
import socket
from contextlib import ExitStack
from typing import Any

from aiohttp import web

from common.http.tls import Tls
from common.http.tls_listener import TlsListener
from common.names import bind_address
from common.tasks import TaskScope

BACKLOG = 1024


class TlsSite(web.BaseSite):
    """One address of it."""

    __slots__ = ("_host", "_port", "_scope", "_tls")

    def __init__(self, runner: web.AppRunner, host: str, port: int, tls: Tls) -> None:
        super().__init__(runner)
        self._host = host
        self._port = port
        self._tls = tls
        self._scope = TaskScope(f"tls {host}:{port}")

    @property
    def name(self) -> str:
        """As aiohttp's other sites have it."""
        return f"https://{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: The address cannot be had.
        """
        await super().start()
        server: Any = self._runner.server
        infos = await asyncio.get_running_loop().getaddrinfo(
            bind_address(self._host), self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with ExitStack() as undo:
            sockets = [
                undo.enter_context(socket.create_server(address[:2], family=family, backlog=BACKLOG))
                for family, address in dict.fromkeys((info[0], info[4]) for info in infos)
            ]
            undo.pop_all()
        listener: Any = TlsListener(sockets, server, lambda: self._tls.server, self._scope)
        self._server = listener  # what aiohttp does with it: `sockets`, and `close`

    async def stop(self) -> None:
        """Accept no more, and end handshakes."""
        await super().stop()
        await self._scope.close()
