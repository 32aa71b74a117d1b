"""How a worker that is replaced gives its clients' idle connections to its successor: the sockets themselves, over a socket pair.

Nobody closes anything, so a client cannot write into a connection that is just being closed, which is what HTTP/1.1 has no
remedy for. What it has written meanwhile waits in the socket. Each slot has a pair for as long as the master lives, like its
listening socket: what one worker gave and died before anybody took it, the next one takes.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import structlog

from common.tasks import TaskScope

log = structlog.get_logger(__name__)


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Where sockets are given, and where they are taken."""
    giving, taking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    giving.settimeout(0)
    taking.settimeout(0)
    return giving, taking


class Handover:
    """A worker's ends of its slot's pair.

    Args:
        giving: Where sockets go once the worker is replaced.
        taking: Where those of its predecessor come from.
        scope: Owns the tasks that connections begin with.
    """

    def __init__(self, giving: socket.socket, taking: socket.socket, scope: TaskScope) -> None:
        self._giving = giving
        self._taking = taking
        self._scope = scope

    def give(self, descriptor: int) -> bool:
        """Send a connected socket on, whose descriptor may then be closed; False when the successor has to catch up first."""
        try:
            socket.send_fds(self._giving, [b"."], [descriptor])
        except OSError:  # its queue is full, or too many are under way (EAGAIN, ETOOMANYREFS): it can be tried again
            return False
        return True

    def take(self, serve: Callable[[], Any]) -> None:
        """Serve what comes from now on, each connection by a protocol that `serve` makes."""
        asyncio.get_running_loop().add_reader(self._taking.fileno(), self._take_all, serve)

    def leave(self) -> None:
        """Take no more: what comes is the successor's."""
        asyncio.get_running_loop().remove_reader(self._taking.fileno())

    def _take_all(self, serve: Callable[[], Any]) -> None:
        while True:
            try:
                _, descriptors, _, _ = socket.recv_fds(self._taking, 1, 1)
            except BlockingIOError:
                return
            if not descriptors:
                log.error("connection.lost", reason="no descriptor is left for a connection of the worker before")
            for descriptor in descriptors:
                self._scope.spawn("take-connection", _serve(serve, socket.socket(fileno=descriptor)))


async def _serve(serve: Callable[[], Any], client: socket.socket) -> None:
    client.settimeout(0)
    try:
        await asyncio.get_running_loop().connect_accepted_socket(serve, client)
    except OSError as error:  # it was reset on its way here
        log.debug("connection.gone", reason=str(error))
        client.close()
