"""What all exchanges of a worker share: the table, the pools, the counters, the limits, and the sweep of deadlines.

Deadlines are instants checked by one sweep every quarter of a second: a timer per request would cost more than the
precision is worth.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import structlog

from common.hosts import addresses_of, dial
from common.http.tls import SHUTDOWN_S, client_context
from common.tasks import TaskScope
from common.wire.address import authority
from router.admission import Waiting
from router.candidates import choose_from
from router.counters import IN_FLIGHT, SharedCounters
from router.facts import PolicyNeeds
from router.keys import Key, KeyRing
from router.model import Eligibility, Endpoint, Table
from router.outlier import TOLD, Outliers, Reason
from router.policy.choose import Chooser
from router.proxy.head import RequestHead, ResponseHead
from router.proxy.headers import CREDENTIALS, FORWARDED
from router.proxy.heads import Heads, request_heads, response_heads
from router.proxy.reach import ASKED_AT, CLOSES, MEMORY_S, SPEAKS_TLS, Run
from router.proxy.upstream import Pool, Upstream
from router.proxy.watch import StallWatch
from router.retry import RetryBudget
from router.serves import call_of

if TYPE_CHECKING:
    from router.proxy.downstream import Downstream
    from router.proxy.exchange import Exchange
    from router.proxy.tracing import Traces

log = structlog.get_logger(__name__)
SWEEP_S = 0.25
RESOLVE_TTL_S = 10.0
WRITE_STALL_S = 60.0
"""A client that takes no byte for so long is dropped (docs/faults.md D3)."""
HEARD_LIMIT = 65536
HELD_LIMIT_BYTES = 64 << 20
"""A JSON answer up to this size is held whole before its first byte goes out (docs/faults.md G9)."""


@dataclass(frozen=True)
class Limits:
    """A worker's limits; sizes in bytes, times in seconds."""

    connect_timeout_s: float
    first_byte_timeout_s: float
    idle_timeout_s: float
    total_timeout_s: float
    max_retries: int
    max_body_bytes: int
    max_bodies_bytes: int
    max_connections: int
    any_path: bool
    extra_paths: frozenset[bytes]
    cors_origins: frozenset[bytes] = frozenset()
    strip_prefixes: tuple[bytes, ...] = ()
    extra_headers: tuple[str, ...] = ()
    queue_limit: int = 256
    queue_timeout_s: float = 30.0
    sse_keepalive_s: float = 15.0
    access_log_sample: float = 0.0
    allow_policy_header: bool = False
    session_header: bytes = b""
    served_by: bool = False
    held_limit_bytes: int = HELD_LIMIT_BYTES
    head_timeout_s: float = 15.0
    body_idle_timeout_s: float = 30.0
    body_timeout_s: float = 600.0
    keepalive_s: float = 60.0
    write_stall_s: float = WRITE_STALL_S


@dataclass
class Engine:
    """The shared state of one worker's data plane; touched only from its event loop."""

    limits: Limits
    counters: SharedCounters
    chooser: Chooser
    control: Endpoint
    scope: TaskScope
    table: Table = field(default_factory=lambda: Table(0))
    outliers: Outliers = field(init=False)
    watch: StallWatch = field(init=False)
    exchanges: "set[Exchange]" = field(default_factory=set)
    clients: "set[Downstream]" = field(default_factory=set)
    body_bytes: int = 0
    retries: RetryBudget = field(default_factory=RetryBudget)
    draining: bool = False
    workers: int = 1
    """Of this router; each has its part of a key's rate."""
    has_cache_types: bool = False
    has_limits: bool = False
    knows_calls: bool = False
    """Whether it is known of any replica which calls it answers."""
    wants_more: bool = False
    """Whether any policy needs more of a request than its model."""
    reads_headers: bool = False
    wanted: PolicyNeeds = field(init=False)
    keys: KeyRing = field(default_factory=KeyRing)
    has_keys: bool = False
    heads: Heads[RequestHead] = field(init=False)
    answer_heads: Heads[ResponseHead] = field(default_factory=response_heads)
    now: Callable[[], float] = time.monotonic
    """Monotonic seconds, the same clock in every process of this machine."""
    log_lines: list[dict[str, object]] = field(default_factory=list)
    traces: "Traces | None" = None
    tls: ssl.SSLContext | None = None
    """What replicas on https are checked with; None for Python's defaults."""
    waiting: "Waiting[Exchange]" = field(init=False)
    _heard: set[str] = field(default_factory=set)
    """Models that somebody listed since the worker began."""
    unreached: dict[str, Run] = field(default_factory=dict)
    """By endpoint id; empty when all is well."""
    _pools: dict[str, Pool] = field(default_factory=dict)
    _resolved: dict[str, tuple[float, tuple[str, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = Waiting(self.limits.queue_limit)
        self.outliers = Outliers(self._set_aside)
        self.watch = StallWatch(self.counters, self.chooser, self.outliers, self.workers)
        self.wanted = PolicyNeeds(self.chooser.reads_prompt, None, None, sessions=False)
        self.set_keys(())

    def set_keys(self, keys: tuple[Key, ...]) -> None:
        """Take the API keys. Clients' own credentials go on to replicas only while there are none (docs/contract.md 2)."""
        self.keys = KeyRing.of(keys, self.workers)
        credentials = frozenset() if keys else CREDENTIALS
        self.has_keys = bool(keys)
        allowed = FORWARDED | credentials | {name.lower().encode() for name in self.limits.extra_headers}
        self.heads = request_heads(
            allowed, self.limits.strip_prefixes, self.limits.extra_paths, self.limits.cors_origins
        )

    def set_table(self, table: Table) -> None:
        """Swap the table; connections and ejections of endpoints that are gone are dropped."""
        self.table = table
        if len(self._heard) > HEARD_LIMIT:
            self._heard.clear()
        self._heard.update(table.by_model)
        self.has_cache_types = any(endpoint.cache_type for endpoint in table.endpoints)
        self.knows_calls = any(endpoint.serves is not None for endpoint in table.endpoints)
        self.has_limits = any(endpoint.limit for endpoint in table.endpoints)
        chooser, limits = self.chooser, self.limits
        chooser.set_table(table, self.now())
        sessions = chooser.uses("session") or limits.allow_policy_header
        self.wanted = PolicyNeeds(chooser.reads_prompt, None, None, sessions)
        self.reads_headers = sessions
        self.wants_more = sessions or chooser.reads_any_prompt()
        alive = {endpoint.id for endpoint in table.endpoints}
        self.outliers.forget_all_but(alive)
        self.watch.set_table(table)
        self.unreached = {key: run for key, run in self.unreached.items() if key in alive}
        for gone in self._pools.keys() - alive - {self.control.id}:
            self._pools.pop(gone).end()
        for endpoint in table.endpoints:
            pool = self._pools.get(endpoint.id)
            if pool is not None and pool.endpoint.authorization != endpoint.authorization:
                self._pools.pop(endpoint.id).end()
            if endpoint.eligibility is Eligibility.DRAINING and endpoint.id in self._pools:
                self._pools.pop(endpoint.id).end()  # it waits until nobody is connected any more

    def peers(self, model: str | None) -> Sequence[Endpoint]:
        """Everybody who lists `model`; everybody, for a request that names none."""
        return self.table.endpoints if model is None else self.table.by_model.get(model, ())

    def peers_for(self, model: str | None, path: bytes) -> Sequence[Endpoint]:
        """`peers`; for a request that names no model without those that are known to answer other calls only."""
        if model is not None or not self.knows_calls:
            return self.peers(model)
        call = call_of(path.decode("latin-1"))
        return [one for one in self.table.endpoints if one.serves is None or call in one.serves]

    def may_come(self, model: str) -> bool:
        """True when `model` was there, is named in the settings, or when the router has heard of no model at all yet."""
        return not self._heard or model in self._heard or self.chooser.rules.names(model)

    def is_ready(self, model: str) -> bool:
        """True when somebody who lists `model` may be asked without being a last resort."""
        choice = choose_from(self.peers(model), (), self.outliers, self.now())
        return bool(choice.endpoints) and not choice.panic

    def candidates(self, peers: Sequence[Endpoint], model: str | None, tried: Collection[str]) -> Sequence[Endpoint]:
        """Who may be asked now; the common case is looked up, not computed."""
        if not tried and self.outliers.quiet and (model is not None or not self.knows_calls):
            fresh = self.table.fresh.get(model)
            if fresh:
                return fresh
        found = choose_from(peers, tried, self.outliers, self.now()).endpoints
        if model is None and self.knows_calls:
            return [one for one in found if one.serves is not None] or found
        return found

    def has_room(self, endpoint: Endpoint) -> bool:
        """True when `endpoint` may get one more request, over all workers."""
        return not endpoint.limit or self.counters.total(endpoint.slot, IN_FLIGHT) < endpoint.limit

    def pool(self, endpoint: Endpoint) -> Pool:
        """The idle connections to `endpoint`."""
        pool = self._pools.get(endpoint.id)
        if pool is None:
            pool = self._pools[endpoint.id] = Pool(endpoint, self.now, self.answer_heads)
        return pool

    async def connect(self, endpoint: Endpoint) -> Upstream:
        """A new connection.

        Raises:
            OSError: Refused, unreachable, its name does not resolve, or its certificate is not believed.
            TimeoutError: Not connected within the connect timeout.
        """
        loop = asyncio.get_running_loop()
        pool = self.pool(endpoint)
        async with asyncio.timeout(self.limits.connect_timeout_s):
            if endpoint.unix_path is not None:
                _, connection = await loop.create_unix_connection(
                    lambda: cast("Any", Upstream(pool)), endpoint.unix_path
                )
                return cast("Upstream", connection)
            addresses = await self._resolve(endpoint.host)
            where: dict[str, Any] = {"host": addresses[0], "port": endpoint.port}
            if len(addresses) > 1:
                good_first = sorted(addresses, key=lambda address: address != pool.address)
                reached, pool.address = await dial(good_first, endpoint.port)
                where = {"sock": reached}
            if endpoint.tls:
                where |= {"ssl": self.tls or True, "server_hostname": endpoint.host, "ssl_shutdown_timeout": SHUTDOWN_S}
            _, connection = await loop.create_connection(lambda: cast("Any", Upstream(pool)), **where)
            return cast("Upstream", connection)

    async def _resolve(self, host: str) -> tuple[str, ...]:
        """The addresses of `host`; a name is asked for at most every ten seconds (docs/faults.md D20)."""
        known = self._resolved.get(host)
        now = self.now()
        if known is not None and now - known[0] < RESOLVE_TTL_S:
            return known[1]
        addresses = await addresses_of(host)
        if len(self._resolved) > 4096:  # noqa: PLR2004 - a bound, not a tuning
            self._resolved.clear()
        self._resolved[host] = (now, addresses)
        return addresses

    def where(self, endpoint: Endpoint) -> str:
        """The addresses of `endpoint` that are known, for messages."""
        known = self._resolved.get(endpoint.host)
        addresses = known[1] if known is not None else (endpoint.host,)
        return ", ".join(authority(address, endpoint.port) for address in addresses)

    def note_unreached(self, endpoint: Endpoint, reason: str) -> None:
        """A request did not reach `endpoint`: once more in a row."""
        if endpoint is self.control:
            return
        run = self.unreached.get(endpoint.id)
        failures = 1 if run is None else run.failures + 1
        known = run is not None and run.reason == SPEAKS_TLS and reason is CLOSES
        self.unreached[endpoint.id] = Run(failures, SPEAKS_TLS if known else reason, self.now())
        if failures == ASKED_AT and reason is CLOSES and not endpoint.tls:
            self.scope.spawn("ask-for-tls", self._ask_for_tls(endpoint))

    async def _ask_for_tls(self, endpoint: Endpoint) -> None:
        """Find out whether `endpoint` hung up because its port speaks TLS; some servers do it without a word."""
        try:
            async with asyncio.timeout(self.limits.connect_timeout_s):
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
        self.unreached.pop(endpoint.id, None)

    async def sweep(self) -> None:
        """Enforce every deadline, for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self.now()
            self.watch.silence.begin()
            for exchange in list(self.exchanges):
                exchange.check(now)
            self.watch.judge(now)
            for client in list(self.clients):
                client.check(now)
            for pool in self._pools.values():
                pool.prune()
            if self.unreached:
                self.unreached = {key: run for key, run in self.unreached.items() if now - run.at < MEMORY_S}
            self.adopt_ejections(now)
            self.chooser.fleet.settle(now)
            self.counters.flush()
            self.serve_waiting()  # room may have come from another worker
            lines, self.log_lines = self.log_lines, []
            for line in lines:
                log.info("request", **line)

    def adopt_ejections(self, now: float) -> None:
        """Learn from the counters whom other workers set aside, and whom they took back."""
        for endpoint in self.table.endpoints:
            until = self.counters.ejected_until_s(endpoint.slot)
            if until > now:
                why = self.counters.ejected_why(endpoint.slot)
                if why:  # none when the master forgave, or cleared the row, since the line before
                    self.outliers.adopt(endpoint, until, Reason(why))
            elif not self.outliers.quiet:
                self.outliers.taken_back(endpoint, until)

    def _set_aside(self, endpoint: Endpoint, until: float, why: Reason) -> None:
        """An ejection begins, or ends early."""
        self.counters.eject(endpoint.slot, until, why)
        for_s = round(until - self.now(), 1)
        if for_s > 0:
            log.warning("replica.set_aside", replica=endpoint.name, reason=TOLD[why], for_s=for_s)
        else:
            log.info("replica.taken_back", replica=endpoint.name)

    def serve_waiting(self) -> None:
        """Let those go who wait for room that is there now."""
        for model in self.waiting.models():
            while any(self.has_room(endpoint) for endpoint in self.peers(model or None)):
                exchange = self.waiting.next(model, self.now())
                if exchange is None:
                    break
                exchange.choose()
                if exchange.queued:
                    break  # the room is not for it: its candidates are others

    def begin_attempt(self, endpoint: Endpoint) -> None:
        """A request goes to `endpoint`: one more in flight."""
        self.counters.add(endpoint.slot, IN_FLIGHT)
        self.outliers.begin(endpoint)

    def room_made(self) -> None:
        """An attempt at a bounded endpoint is over: somebody may have waited for that."""
        if len(self.waiting):
            asyncio.get_running_loop().call_soon(self.serve_waiting)

    def busy(self) -> bool:
        """True while a request is under way, or still arrives."""
        return bool(self.exchanges) or any(client.asking for client in self.clients)

    def drain(self) -> None:
        """Finish what is under way: idle clients are closed now, busy ones after their answer."""
        self.draining = True
        for client in list(self.clients):
            client.drain()

    def abort_all(self) -> None:
        """The drain's time is over: end every client."""
        for client in list(self.clients):
            client.expel()
