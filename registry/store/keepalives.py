"""Keepalives of etcd's leases, sent together: the gateway's stream takes many in one call.

Heartbeats of a quarter of a second share calls, and none waits for one: of 10,000 replicas' 4,000 heartbeats a second each
would otherwise cost registry and etcd more than all the rest of it.
"""

import asyncio

import structlog

from registry.core.store import StoreError
from registry.store.gateway import Gateway

log = structlog.get_logger(__name__)
MOST_AT_ONCE = 500
GATHER_S = 0.25
"""Much less than what a lease has left when its record beats in time."""


class Keepalives:
    """Renews leases through `gateway`; `run` must be running. `renewed` counts what etcd has confirmed."""

    def __init__(self, gateway: Gateway) -> None:
        self.renewed = 0
        self._gateway = gateway
        self._waiting: dict[int, None] = {}
        self._asked = asyncio.Event()

    def renew(self, lease: int) -> None:
        """Give a lease its full length again, soon."""
        self._waiting[lease] = None
        self._asked.set()

    async def run(self) -> None:
        """Send what was asked for, four times a second, for ever."""
        while True:
            await self._asked.wait()
            await asyncio.sleep(GATHER_S)
            leases, self._waiting = list(self._waiting), {}
            self._asked.clear()
            for begin in range(0, len(leases), MOST_AT_ONCE):
                await self._send(leases[begin : begin + MOST_AT_ONCE])

    async def _send(self, leases: list[int]) -> None:
        """One call. What it could not renew beats again long before the lease's end."""
        try:
            replies = await self._gateway.call_many("/lease/keepalive", [{"ID": lease} for lease in leases])
        except StoreError as error:
            log.debug("store.renew_failed", leases=len(leases), reason=str(error))
            return
        self.renewed += sum(reply.result.ttl is not None for reply in replies)
