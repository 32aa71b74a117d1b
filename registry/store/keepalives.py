"""Keepalives of etcd's leases, sent together: the gateway's stream takes several in one call.

Heartbeats of a quarter of a second share calls, and none waits for one: of 10,000 replicas' 4,000 heartbeats a second each
would otherwise cost registry and etcd more than all the rest of it.
"""

import asyncio

import structlog

from registry.core.store import StoreError
from registry.store.gateway import READ_AT_ONCE_BYTES, Gateway

log = structlog.get_logger(__name__)
MOST_AT_ONCE = READ_AT_ONCE_BYTES // len(b'{"ID":9223372036854775807}')
GATHER_S = 0.25
"""Much less than what a lease has left when its record beats in time."""
AGAIN_S = 1.0
"""After a call that failed."""


class Keepalives:
    """Renews leases through `gateway`; `run` must be running. `renewed` counts what etcd has confirmed.

    What could not be renewed is asked for until etcd answers: where heartbeats are minutes apart the next one comes
    after the lease's end.
    """

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
        fails = False
        while True:
            await self._asked.wait()
            await asyncio.sleep(AGAIN_S if fails else GATHER_S)
            leases, self._waiting = list(self._waiting), {}
            self._asked.clear()
            try:
                while leases:
                    await self._send(leases[:MOST_AT_ONCE])
                    del leases[:MOST_AT_ONCE]
            except StoreError as error:
                if not fails:
                    log.warning("store.renew_failed", leases=len(leases), reason=str(error))
                for lease in leases:
                    self.renew(lease)
                fails = True
            else:
                fails = False

    async def _send(self, leases: list[int]) -> None:
        """One call."""
        replies = await self._gateway.call_many("/lease/keepalive", [{"ID": lease} for lease in leases])
        self.renewed += sum(reply.result.ttl is not None for reply in replies)
