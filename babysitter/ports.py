"""The server's port: is it free, who has it (A14), and who is still being served at it (D28)?"""

import os
import socket
from pathlib import Path

import psutil

from common.http.serve import Address, explain_bind
from common.names import bind_address

ESTABLISHED = "01"


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


def is_free(host: str, *ports: int) -> bool:
    """True when all of `ports` could be listened at now; quicker than `complaint`, and without its reasons."""
    address = bind_address(host)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in ports:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
                probe.listen(1)
            except OSError:
                return False
    return True


def clients(port: int) -> int:
    """Connections that others hold to the server on this machine's `port`; our own are not counted.

    A router's idle connection counts for the few seconds that it is kept, for it cannot be told from a busy one.
    """
    ours = {
        connection.laddr.port
        for connection in psutil.Process(os.getpid()).net_connections("tcp")
        if connection.raddr and connection.raddr.port == port
    }
    found = 0
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, remote, state, *_ = line.split()
            if state == ESTABLISHED and _port(local) == port and _port(remote) not in ours:
                found += 1
    return found


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)
