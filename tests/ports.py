"""Ports for what tests start as processes: free, with the next one, and nobody else's.

The kernel lends the ports of its ephemeral range (32768 and up) to every outgoing connection, so one that was free when a
test asked may be taken when its process binds. These come from below it, each test worker has a share of its own, and none
is given twice by one worker.
"""

import itertools
import os
import random
import socket

FIRST, SHARE, SHARES = 16_000, 2_000, 8
"""16000 to 31999: above the ports that services of a machine usually have, below the ephemeral range."""

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % SHARES
_start = random.randrange(0, SHARE, 2)
_pairs = (FIRST + _worker * SHARE + (_start + 2 * n) % SHARE for n in itertools.count())


def free_port() -> int:
    """A port that is free, with the next one (a babysitter's beside its server's)."""
    return next(port for port in _pairs if is_free(port) and is_free(port + 1))


def free_ports(count: int) -> list[int]:
    """As many of them."""
    return [free_port() for _ in range(count)]


def is_free(port: int) -> bool:
    """Whether loopback's `port` can be bound."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
