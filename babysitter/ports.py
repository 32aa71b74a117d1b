"""The server's port: is it free, who has it (A14), and who is still being served at it (D28)?"""

import contextlib
import ipaddress
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

from babysitter import connections
from common.http.serve import Address, explain_bind
from common.names import bind_address

ESTABLISHED, LISTENING = "01", "0A"
LOOK_UP_WAIT_S = 2.0


def is_here(host: str) -> bool:
    """True when `host` can be listened on by this machine and means the same to others.

    A name that this machine alone reads as its loopback (Debian's `127.0.1.1 thishost`) is known to others by another
    address, and one that cannot be looked up within a moment may be.
    """
    if host == "localhost":
        return True
    try:
        addresses = {ipaddress.ip_address(host)}
    except ValueError:
        addresses = {address for address in look_up(host) if not address.is_loopback}
    return bool(addresses) and all(_binds(address) for address in addresses)


def look_up(name: str) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses of `name`; none when the resolver knows none or does not answer in time."""
    addresses: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = set()

    def ask() -> None:
        with contextlib.suppress(OSError):
            for *_, where in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
                addresses.add(ipaddress.ip_address(str(where[0]).partition("%")[0]))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(LOOK_UP_WAIT_S)
    return set(addresses)


def _binds(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004 - of the protocol
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


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


def clients(port: int, *, at_rest: bool = False) -> int:
    """Connections at which others are served on this machine's `port`; our own and idle ones are not counted.

    One is idle some time after the last byte of the server's, if the client has asked nothing since; sooner where the
    server is `at_rest`, which is to say that it has no request by its own account. Where the kernel does not tell which are idle, they count while they are kept.
    """
    ours = {
        connection.laddr.port
        for connection in psutil.Process(os.getpid()).net_connections("tcp")
        if connection.raddr and connection.raddr.port == port
    }
    with contextlib.suppress(OSError):
        return sum(
            not one.is_idle(at_rest=at_rest) and one.remote_port not in ours for one in connections.established(port)
        )
    return sum(remote not in ours for local, remote in _sockets(ESTABLISHED) if local == port)


def listens(port: int) -> bool:
    """True when somebody listens at this machine's `port`. No connection is made: one may be all that a server takes."""
    return any(local == port for local, _ in _sockets(LISTENING))


def _sockets(wanted: str) -> Iterator[tuple[int, int]]:
    """Local and remote port of each TCP socket in that state."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, remote, state, *_ = line.split()
            if state == wanted:
                yield _port(local), _port(remote)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)
