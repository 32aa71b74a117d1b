"""Where an aiohttp application listens with TLS."""

from typing import Any

from aiohttp import web

from common.http.listening import listening
from common.http.tls import Tls
from common.http.tls_listener import TlsListener
from common.tasks import TaskScope


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
        sockets = await listening(self._host, self._port)
        listener: Any = TlsListener(sockets, server, lambda: self._tls.server, self._scope)
        self._server = listener  # what aiohttp does with it: `sockets`, and `close`

    async def stop(self) -> None:
        """Accept no more, and end handshakes."""
        await super().stop()
        await self._scope.close()
