"""Asking a host: all of its addresses, in one order, for every service.

To ask `localhost` means both addresses of the loopback (`names.py`), since a server may have chosen either. Any other
name means what it resolves to, IPv4 first: servers of this kind bind 127.0.0.1 and 0.0.0.0.
"""

import asyncio
import errno
import socket
from collections.abc import Sequence

import aiohappyeyeballs

from common.names import LOOPBACK, is_address, is_localhost

HEAD_START_S = 0.25
"""What one address gets before the next is tried beside it (RFC 8305, 5)."""


async def addresses_of(host: str) -> tuple[str, ...]:
    """The addresses to ask for `host`, in the order in which they are tried; at least one.

    Raises:
        OSError: The name does not resolve.
        UnicodeError: It cannot be a name.
    """
    if is_address(host):
        return (host,)
    if is_localhost(host):
        return LOOPBACK
    infos = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    old_first = sorted(infos, key=lambda info: info[0] != socket.AF_INET)
    return tuple(dict.fromkeys(str(info[4][0]) for info in old_first))


async def dial(addresses: Sequence[str], port: int) -> tuple[socket.socket, str]:
    """A connection to the first of `addresses` that takes one, and which it is; a silent one holds the next up briefly.

    Raises:
        OSError: None of them does; with the errno that all have in common, else ECONNREFUSED.
    """
    infos = [
        socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
        for address in addresses
    ]
    try:
        reached = await aiohappyeyeballs.start_connection(infos, happy_eyeballs_delay=HEAD_START_S)
    except (OSError, RuntimeError) as error:  # RuntimeError: uvloop's, now and then
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # Each refused for a reason of its own.
        raise ConnectionRefusedError(errno.ECONNREFUSED, str(error)) from error
    try:
        return reached, str(reached.getpeername()[0])
    except OSError:  # gone as soon as it was there
        reached.close()
        raise
