"""Sockets that listen."""

import asyncio
import socket
from contextlib import ExitStack

from common.names import bind_address

BACKLOG = 1024


async def listening(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of `host`; the caller closes them.

    Raises:
        OSError: An address cannot be had; then none is.
    """
    infos = await asyncio.get_running_loop().getaddrinfo(
        bind_address(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    with ExitStack() as undo:
        sockets = [
            undo.enter_context(socket.create_server(address[:2], family=family, backlog=BACKLOG))
            for family, address in dict.fromkeys((info[0], info[4]) for info in infos)
        ]
        undo.pop_all()
    return sockets
