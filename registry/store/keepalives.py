"""Keepalives of etcd's leases, sent together: the gateway's stream takes several in one call.

Heartbeats of a quarter of a second share calls, and none waits for one: of 10,000 replicas' 4,000 heartbeats a second each
would otherwise cost registry and etcd more than all the rest of it.
"""

import asyncio

import structlog

from registry.core.store import StoreError
from registry.store.gateway import Gateway

log = structlog.get_logger(__name__)
MOST_AT_ONCE = 512 // len(b'{"ID":9223372036854775807}')
"""The gateway reads 512 bytes of a call's requests at a time (Go's `json.Decoder`), and once it has begun to answer what it has not read is
lost (HTTP/1.1 in Go's `net/http`): of 300 leases in one call, 19 were renewed in one call of three (etcd 3.4.23)."""
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
        self._fails = False
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
            await asyncio.sleep(AGAIN_S if self._fails else GATHER_S)
            leases, self._waiting = list(self._waiting), {}
            self._asked.clear()
            for begin in range(0, len(leases), MOST_AT_ONCE):
                if not await self._send(leases[begin : begin + MOST_AT_ONCE]):
                    for lease in leases[begin:]:
                        self.renew(lease)
                    break

    async def _send(self, leases: list[int]) -> bool:
        """One call; False when etcd did not answer it."""
        try:
            replies = await self._gateway.call_many("/lease/keepalive", [{"ID": lease} for lease in leases])
        except StoreError as error:
            if not self._fails:
                log.warning("store.renew_failed", leases=len(leases), reason=str(error))
            self._fails = True
            return False
        self._fails = False
        self.renewed += sum(reply.result.ttl is not None for reply in replies)
        return True
