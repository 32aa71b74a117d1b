"""Is the server's port free, and if not, who has it (A14)?"""

import socket

from common.http.serve import Address, explain_bind


def bind_address(host: str) -> str:
    """What to bind for `host`: `localhost` means the IPv4 loopback, as it does for the servers we start."""
    return "127.0.0.1" if host == "localhost" else host


def complaint(host: str, port: int, what: str) -> str | None:
    """Why nobody can listen on the port now (names who has it), or None when it is free."""
    address = bind_address(host)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen(1)
    except OSError as error:
        return explain_bind(error, Address(host, port), what)
    return None
