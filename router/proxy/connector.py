"""How a worker reaches replicas: idle connections, addresses of names, and who could not be reached, and why."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final, cast

from common.hosts import addresses_of, dial
from common.http.tls import SHUTDOWN_S, client_context
from common.tasks import TaskScope
from common.wire.address import authority
from router.model import Eligibility, Endpoint, Table
from router.proxy.heads import response_heads
from router.proxy.limits import Limits
from router.proxy.reach import ASKED_AT, CLOSES, MEMORY_S, SPEAKS_TLS, Run
from router.proxy.upstream import Pool, Upstream

RESOLVE_TTL_S: Final = 10.0
_NAMES_LIMIT: Final = 4096
"""Of host names whose addresses are kept."""


class Connector:
    """One worker's.

    Args:
        limits: The worker's limits.
        scope: Owns the question whether a port speaks TLS.
        control: The router's own endpoint, which is no replica.
        now: Monotonic seconds.
        tls: What replicas on https are checked with; None for Python's defaults.
    """

    def __init__(
        self,
        limits: Limits,
        scope: TaskScope,
        control: Endpoint,
        now: Callable[[], float],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits
        self._scope = scope
        self._control = control
        self._now: Callable[[], float] = now
        self.tls = tls
        self._heads = response_heads()
        self._pools: dict[str, Pool] = {}
        self._resolved: dict[str, tuple[float, tuple[str, ...]]] = {}
        self.unreached: dict[str, Run] = {}
        """By endpoint id; empty when all is well."""

    def set_table(self, table: Table) -> None:
        """Close the connections of endpoints that are gone, drain, or got another key."""
        endpoints = {endpoint.id: endpoint for endpoint in table.endpoints}
        self.unreached = {key: run for key, run in self.unreached.items() if key in endpoints}
        for key, pool in list(self._pools.items()):
            endpoint = endpoints.get(key)
            if endpoint is None:
                stays = key == self._control.id
            else:
                # One that drains waits until nobody is connected any more.
                same_key = pool.endpoint.authorization == endpoint.authorization
                stays = same_key and endpoint.eligibility is not Eligibility.DRAINING
            if not stays:
                self._pools.pop(key).end()

    def prune(self, now: float) -> None:
        """Close what has been idle too long, and forget failures that are long ago."""
        for pool in self._pools.values():
            pool.prune()
        if self.unreached:
            self.unreached = {key: run for key, run in self.unreached.items() if now - run.at < MEMORY_S}

    def pool(self, endpoint: Endpoint) -> Pool:
        """The idle connections to `endpoint`."""
        pool = self._pools.get(endpoint.id)
        if pool is None:
            pool = self._pools[endpoint.id] = Pool(endpoint, self._now, self._heads)
        return pool

    async def connect(self, endpoint: Endpoint) -> Upstream:
        """A new connection.

        Raises:
            OSError: Refused, unreachable, its name does not resolve, or its certificate is not believed.
            TimeoutError: Not connected within the connect timeout.
            UnicodeError: The host cannot be one.
        """
        loop = asyncio.get_running_loop()
        pool = self.pool(endpoint)
        async with asyncio.timeout(self._limits.connect_timeout_s):
            if endpoint.unix_path is not None:
                _, connection = await loop.create_unix_connection(
                    lambda: cast("Any", Upstream(pool)), endpoint.unix_path
                )
                return cast("Upstream", connection)
            addresses = await self._resolve(endpoint.host)
            where: dict[str, Any] = {"host": addresses[0], "port": endpoint.port}
            if len(addresses) > 1:
                good_first = sorted(addresses, key=lambda address: address != pool.address)
                sock, pool.address = await dial(good_first, endpoint.port)
                where = {"sock": sock}
            if endpoint.tls:
                where |= {"ssl": self.tls or True, "server_hostname": endpoint.host, "ssl_shutdown_timeout": SHUTDOWN_S}
            _, connection = await loop.create_connection(lambda: cast("Any", Upstream(pool)), **where)
            return cast("Upstream", connection)

    async def _resolve(self, host: str) -> tuple[str, ...]:
        """The addresses of `host`; a name is asked for at most every ten seconds (docs/faults.md D20)."""
        cached = self._resolved.get(host)
        now = self._now()
        if cached is not None and now - cached[0] < RESOLVE_TTL_S:
            return cached[1]
        addresses = await addresses_of(host)
        if len(self._resolved) > _NAMES_LIMIT:
            self._resolved.clear()
        self._resolved[host] = (now, addresses)
        return addresses

    def where(self, endpoint: Endpoint) -> str:
        """The addresses of `endpoint` as they were resolved last, for messages."""
        cached = self._resolved.get(endpoint.host)
        addresses = cached[1] if cached is not None else (endpoint.host,)
        return ", ".join(authority(address, endpoint.port) for address in addresses)

    def note_unreached(self, endpoint: Endpoint, reason: str) -> None:
        """A request did not reach `endpoint`: once more in a row."""
        if endpoint is self._control:
            return
        run = self.unreached.get(endpoint.id)
        failures = 1 if run is None else run.failures + 1
        speaks_tls = run is not None and run.reason == SPEAKS_TLS and reason is CLOSES
        self.unreached[endpoint.id] = Run(failures, SPEAKS_TLS if speaks_tls else reason, self._now())
        if failures == ASKED_AT and reason is CLOSES and not endpoint.tls:
            self._scope.spawn("ask-for-tls", self._ask_for_tls(endpoint))

    async def _ask_for_tls(self, endpoint: Endpoint) -> None:
        """Find out whether `endpoint` hung up because its port speaks TLS; some servers do it without a word."""
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                addresses = await self._resolve(endpoint.host)
                transport, _ = await asyncio.get_running_loop().create_connection(
                    asyncio.Protocol, addresses[0], endpoint.port, ssl=client_context(None, verify=False)
                )
        except (OSError, TimeoutError, UnicodeError):
            return
        transport.abort()
        run = self.unreached.get(endpoint.id)
        if run is not None:
            self.unreached[endpoint.id] = run._replace(reason=SPEAKS_TLS)

    def note_reached(self, endpoint: Endpoint) -> None:
        """`endpoint` has answered."""
        if self.unreached:
            self.unreached.pop(endpoint.id, None)
