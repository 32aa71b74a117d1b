"""Accepting connections that speak TLS: each is greeted by a task of its own, bounded in time and number.

asyncio's own listener would let 60 s pass before it gives up on a client that connects and says nothing, and does not count
such clients. A protocol hears of a connection once its handshake is done. The context is asked for at each connection, so
that a new certificate is shown from the next one on, and connections that stand keep the one they have.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from common.http.tls import SHUTDOWN_S
from common.tasks import TaskScope

log = structlog.get_logger(__name__)
HANDSHAKE_S = 10.0
HANDSHAKES_AT_ONCE = 512
"""Of one listener; who comes while there are so many is hung up on."""
ACCEPTED_AT_ONCE = 64
"""Between two turns of the loop."""
REST_S = 1.0
"""Until it is tried again when there is no descriptor left."""
TOLD_S = 1.0


class TlsListener:
    """Accepts at sockets that listen.

    Args:
        sockets: They; closed by `close`.
        protocol: Makes the protocol of one connection.
        context: What to greet with now.
        scope: Owns the handshakes.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        protocol: Callable[[], Any],
        context: Callable[[], ssl.SSLContext | None],
        scope: TaskScope,
    ) -> None:
        self.sockets = sockets
        self._protocol = protocol
        self._context = context
        self._scope = scope
        self._greeting = self._failures = 0
        self._told_at = -TOLD_S
        self._is_open = True
        for one in sockets:
            one.settimeout(0)
            self._listen(one)

    def close(self) -> None:
        """Accept no more."""
        self._is_open = False
        for one in self.sockets:
            asyncio.get_running_loop().remove_reader(one)
            one.close()

    def _listen(self, listening: socket.socket) -> None:
        if self._is_open:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                client, _address = listening.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                log.error("tls.accept_failed", reason=str(error), again_in_s=REST_S)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listening)
                loop.call_later(REST_S, self._listen, listening)
                return
            if self._greeting >= HANDSHAKES_AT_ONCE:
                client.close()
                continue
            self._greeting += 1
            self._scope.spawn("handshake", self._greet(client))

    async def _greet(self, client: socket.socket) -> None:
        try:
            client.settimeout(0)
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol,
                client,
                ssl=self._context(),
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except ssl.SSLError as error:
            self._tell(error)
            client.close()
        except OSError:  # it left, or said nothing for too long
            client.close()
        finally:
            self._greeting -= 1

    def _tell(self, error: ssl.SSLError) -> None:
        """Whom we refused, or who refused us, at most once a second: anybody can cause it."""
        self._failures += 1
        now = asyncio.get_running_loop().time()
        if now - self._told_at >= TOLD_S:
            log.warning("tls.handshake_failed", reason=str(error), failures=self._failures)
            self._failures, self._told_at = 0, now
