"""Leases of etcd, as they are granted: one for each record, and one for the tombstones of some seconds together."""

import math
import time
from collections.abc import Callable
from typing import Final

from registry.core.ownership import TOMBSTONE_S
from registry.store.gateway import Gateway

BURIED_TOGETHER_S: Final = 10.0
"""Tombstones of so long share a lease, and lie for that much longer at most: to grant one costs etcd as much as the write."""


async def grant(gateway: Gateway, length_s: float) -> tuple[int, int]:
    """A new lease, and the revision of etcd when it was granted."""
    reply = await gateway.call("/lease/grant", {"TTL": math.ceil(length_s)})
    return reply.id, reply.header.revision


class Burial:
    """The lease of tombstones, which lie for `TOMBSTONE_S` at least."""

    def __init__(self, gateway: Callable[[], Gateway]) -> None:
        self._gateway = gateway
        self._lease, self._until = 0, 0.0

    async def lease(self) -> int:
        """For a tombstone now."""
        now = time.monotonic()
        if now >= self._until:
            self._lease, _ = await grant(self._gateway(), TOMBSTONE_S + BURIED_TOGETHER_S)
            self._until = now + BURIED_TOGETHER_S
        return self._lease

    def forget(self) -> None:
        """It may have ended: etcd has lost data."""
        self._until = 0.0
