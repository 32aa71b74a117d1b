"""A worker: serves one listening socket until it is told to retire; `worker_main.py` is its process.

Everything but three descriptors comes over the feed. When the feed ends, the master is gone: the worker finishes what it
has and ends, so that a new master finds the port free.
"""

import asyncio
import contextlib
import gc
import logging
import random
import socket
import time
from collections.abc import Awaitable, Callable
from math import inf
from pathlib import Path
from typing import Any, Protocol, cast

import structlog

from common import log as logs
from common.exits import Exit
from common.http.tls import client_context, server_context
from common.http.tls_listener import TlsListener
from common.tasks import TaskScope
from common.tokens import HOUR_S
from common.tracing import open_tracing
from router import feed
from router.cold import ColdCounts
from router.counters import BLOCKS_EACH, IN_FLIGHT, Shape, SharedCounters
from router.handover import Handover
from router.journal import leave
from router.ledger import Ledger
from router.model import Endpoint, Table
from router.policy.choose import Chooser
from router.policy.fleet_view import FleetView
from router.proxy.downstream import Downstream
from router.proxy.engine import Engine
from router.proxy.limits import Limits
from router.proxy.tracing import Traces
from router.settings import RouterSettings
from router.sharing import Sharing

log = structlog.get_logger(__name__)
BEAT_S = 1.0
TOKENS_S = 0.25
"""What was counted since the last word is lost by a kill."""
TOGETHER_S = 0.01
"""Requests that arrive together are told of together."""
TURN_S = 0.05
FLUSH_TURNS = 20


def limits_of(settings: RouterSettings) -> Limits:
    """The data plane's limits as the settings say."""
    paths = frozenset(path.encode() for path in settings.proxy_paths)
    return Limits(
        connect_timeout_s=settings.connect_timeout_s,
        first_byte_timeout_s=settings.first_byte_timeout_s,
        idle_timeout_s=settings.idle_timeout_s,
        total_timeout_s=settings.proxy_timeout_seconds,
        max_retries=settings.max_retries,
        max_body_bytes=settings.max_body_bytes,
        max_bodies_bytes=settings.max_bodies_bytes,
        stream_uploads_bytes=settings.stream_uploads_bytes,
        max_connections=settings.max_connections,
        body_idle_timeout_s=settings.body_idle_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        any_path=b"*" in paths,
        extra_paths=paths,
        cors_origins=frozenset(origin.encode() for origin in settings.cors_origins),
        strip_prefixes=tuple(prefix.encode() for prefix in settings.strip_prefixes),
        extra_headers=settings.forward_headers,
        queue_limit=settings.queue_limit,
        queue_timeout_s=settings.queue_timeout_s,
        hold_s=settings.hold_s,
        hold_limit=settings.hold_limit,
        sse_keepalive_s=settings.sse_keepalive_s,
        access_log_sample=settings.access_log_sample,
        served_by=settings.served_by,
        websocket_timeout_s=settings.websocket_timeout_s,
        max_rescues=settings.max_rescues,
        allow_policy_header=settings.allow_policy_header,
        session_header=settings.session_header.lower().encode(),
    )


def chooser_of(settings: RouterSettings, sharing: Sharing | None, counters: SharedCounters) -> Chooser:
    """Who picks, as the settings say; `sharing` where others pick as well."""
    return Chooser(
        rng=random.Random(),  # noqa: S311 - spreading load, no secret
        in_flight=lambda endpoint: counters.total(endpoint.slot, IN_FLIGHT),
        rules=settings.model_rules(),
        fleet=FleetView(elsewhere=sharing, read_ahead_s=settings.read_ahead_s),
        cache_type_threshold_bytes=settings.cache_type_routing_threshold,
        sticky_keys=settings.sticky_keys,
        slow_start_s=settings.slow_start_s,
    )


class Certificates:
    """What this worker shows clients and replicas, and which replicas it believes.

    Args:
        engine: Asks the replicas.
        verify: As the settings say.
        told: By the master.
    """

    def __init__(self, engine: Engine, told: feed.Certificates, *, verify: bool) -> None:
        self._engine = engine
        self._verify = verify
        self.put(told)

    def put(self, told: feed.Certificates) -> None:
        """For connections that begin from now on."""
        self.server = server_context(told.material)
        self._engine.connector.tls = client_context(told.ca, verify=self._verify, shown=told.material)


class Departure:
    """How this worker leaves, as the master says: more than once, where it becomes urgent.

    Args:
        engine: What it has of clients.
        handover: Where those go, if there is a successor.
        timeout_s: How long what is under way may take if the master is gone.
        is_tls: Clients speak TLS: what a connection's keys are cannot be handed over, so each is told that it closes.
    """

    def __init__(self, engine: Engine, handover: Handover, timeout_s: float, *, is_tls: bool = False) -> None:
        self._engine = engine
        self._is_tls = is_tls
        self._handover = handover
        self._timeout_s = timeout_s
        self._until = inf
        self.is_orphaned = False

    def begin(self, retire: feed.Retire | None) -> None:
        """Leave, or leave sooner; None: the master is gone, and no more tables come."""
        self.is_orphaned = self.is_orphaned or retire is None
        retire = retire or feed.Retire(within_s=self._timeout_s)
        self._until = min(self._until, self._engine.now() + retire.within_s)
        if retire.hand_over:
            self._handover.leave()
        self._engine.drain(self._handover.give if retire.hand_over and not self._is_tls else None)

    async def end(self) -> None:
        """Let requests under way finish, then end the rest with an error."""
        engine, began = self._engine, self._engine.now()
        while engine.busy() and engine.now() < self._until:
            await asyncio.sleep(TURN_S)
            engine.leave()
            if self.is_orphaned:
                engine.end_held()
        if engine.busy():
            after_s = round(engine.now() - began, 1)
            log.warning("worker.drain_timed_out", exchanges=len(engine.exchanges), after_s=after_s)
        engine.abort_all()
        engine.tell()
        # Answers just written leave with the next turns of the loop.
        for _ in range(FLUSH_TURNS):
            if not engine.clients:
                return
            await asyncio.sleep(TURN_S)


async def serve(
    feed_fd: int, counters_fd: int, socket_fd: int, giving_fd: int, taking_fd: int, *, is_compiled: bool
) -> int:
    """Run until retired; returns the exit code. `is_compiled` is only told to the master."""
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=feed_fd))
    plan = await feed.read(reader)
    if not isinstance(plan, feed.WorkerSetup):
        return Exit.SOFTWARE
    settings = RouterSettings.model_validate_json(plan.settings)
    logs.setup("router", level=settings.log_level, json=settings.log_json)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it warns of what the client is told anyway
    structlog.contextvars.bind_contextvars(worker=plan.index)
    listening = socket.socket(fileno=socket_fd)
    listening.settimeout(0)
    async with TaskScope(f"worker{plan.index}") as scope:
        counters = SharedCounters(counters_fd, Shape(plan.slots, BLOCKS_EACH * plan.workers), plan.block)
        engine = Engine(
            limits=limits_of(settings),
            counters=counters,
            chooser=chooser_of(settings, Sharing(counters) if plan.workers > 1 or settings.shares else None, counters),
            control=Endpoint(
                id="control", name="control", host="router", port=0, slot=plan.slots, unix_path=plan.control_path
            ),
            scope=scope,
            workers=plan.workers,
        )
        engine.ledger = Ledger() if settings.registry_url or settings.api_keys_file else None
        certificates = Certificates(engine, plan.certificates, verify=settings.replica_tls_verify)
        tracing = open_tracing(settings, "router", **{"inference.worker": str(plan.index)})
        if tracing is not None:
            engine.traces = Traces(tracing.send, settings.trace_sample)
        asked = asyncio.Event()
        engine.tell_demand = asked.set
        engine.ask_for_adapter = lambda adapter, endpoint: feed.write(writer, feed.AdapterWanted(adapter, endpoint))
        engine.budgets.ask = lambda rows: feed.write(writer, feed.Leases(rows))
        engine.budgets.soon = asyncio.get_running_loop().call_soon
        scope.spawn("sweep", engine.sweep(), service=True)
        handover = Handover(socket.socket(fileno=giving_fd), socket.socket(fileno=taking_fd), scope)
        departure = Departure(engine, handover, settings.drain_timeout_s, is_tls=certificates.server is not None)

        async def start() -> Listener:
            server = await _accept(engine, listening, handover, certificates)
            scope.spawn("beat", _beat(writer, engine, asked, is_compiled=is_compiled), service=True)
            scope.spawn("tokens", _tell_tokens(writer, engine, departure), service=True)
            return server

        retired = scope.spawn("feed", _listen(reader, engine, certificates, start, departure))
        failure = asyncio.ensure_future(scope.failed())
        await asyncio.wait({retired, failure}, return_when=asyncio.FIRST_COMPLETED)
        if failure.done():
            return Exit.SOFTWARE
        failure.cancel()
        await departure.end()
        await _last_words(writer, engine, departure, Path(plan.usage_folder))
        if tracing is not None:
            await asyncio.to_thread(tracing.close)
    return Exit.OK


class Listener(Protocol):
    """What takes new connections."""

    def close(self) -> None:
        """Take no more."""
        ...


async def _accept(engine: Engine, listening: socket.socket, handover: Handover, certificates: Certificates) -> Listener:
    """Take connections: new ones, and the idle ones of the worker before."""
    server: Listener
    if certificates.server is not None:
        server = TlsListener([listening], lambda: Downstream(engine), lambda: certificates.server, engine.scope)
    else:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: cast("Any", Downstream(engine)), sock=listening, backlog=1024)
    handover.take(lambda: Downstream(engine, kept=True))
    # What lives now lives for ever: keep the collector from walking it at every pass.
    gc.collect()
    gc.freeze()
    return server


async def _listen(
    reader: asyncio.StreamReader,
    engine: Engine,
    certificates: Certificates,
    start: Callable[[], Awaitable[Listener]],
    departure: Departure,
) -> None:
    """Take tables from the master; serve from the first one on; return when told to retire."""
    server: Listener | None = None
    while True:
        message = await feed.read(reader)
        if message is None or isinstance(message, feed.Retire):
            if message is None:
                log.error("worker.master_gone")
            else:
                engine.scope.spawn("follow", _follow(reader, engine, certificates, departure))
            if server is not None:
                server.close()
            departure.begin(message)
            return
        _take(engine, certificates, message)
        if isinstance(message, feed.Endpoints) and server is None:
            server = await start()


async def _follow(
    reader: asyncio.StreamReader, engine: Engine, certificates: Certificates, departure: Departure
) -> None:
    """Go on taking what the master sends while requests drain: some may wait for a replica that comes."""
    while (message := await feed.read(reader)) is not None:
        if isinstance(message, feed.Retire):
            departure.begin(message)
        _take(engine, certificates, message)
    departure.begin(None)


def _take(engine: Engine, certificates: Certificates, message: feed.Message) -> None:
    """Put what the master sent in force."""
    if isinstance(message, feed.Endpoints):
        engine.set_table(Table.of(message.version, message.endpoints))
    elif isinstance(message, feed.Changes):
        engine.set_table(message.made_in(engine.table))
    elif isinstance(message, feed.Keys):
        engine.set_keys(message.keys, required=message.required)
    elif isinstance(message, feed.Standings):
        engine.set_standings(message.changed, message.gone, lost=message.lost)
    elif isinstance(message, feed.Certificates):
        certificates.put(message)
    elif isinstance(message, feed.Grants):
        engine.budgets.take(message.grants, closed=message.closed)
    elif isinstance(message, feed.Forgive):
        engine.outliers.forgive(message.endpoint)


async def _beat(writer: asyncio.StreamWriter, engine: Engine, asked: asyncio.Event, *, is_compiled: bool) -> None:
    """Tell the master, every second, that this worker turns its loop; and soon when a cold model is asked for."""
    while True:
        unreached = {key: (run.failures, run.reason) for key, run in engine.connector.unreached.items()}
        beat = feed.WorkerStatus(
            engine.table.version,
            len(engine.clients),
            len(engine.exchanges),
            is_compiled,
            unreached,
            _waits(engine),
        )
        feed.write(writer, beat)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asked.wait(), BEAT_S)
            await asyncio.sleep(TOGETHER_S)
        asked.clear()


async def _tell_tokens(writer: asyncio.StreamWriter, engine: Engine, departure: Departure) -> None:
    """Tell the master what was counted, for ever; without one it is kept for `_last_words`."""
    while True:
        await asyncio.sleep(TOKENS_S)
        if engine.ledger is not None and not departure.is_orphaned and (rows := engine.ledger.take()):
            feed.write(writer, feed.TokensUsed(rows))


async def _last_words(writer: asyncio.StreamWriter, engine: Engine, departure: Departure, folder: Path) -> None:
    """Tell the rest, to the master or to the next one; what is free of keys' limits is given back."""
    if not departure.is_orphaned:
        engine.budgets.leave()
    rows = engine.ledger.take() if engine.ledger is not None else []
    if rows and departure.is_orphaned:
        await asyncio.to_thread(leave, folder, int(time.time() // HOUR_S), rows)
    elif rows:
        feed.write(writer, feed.TokensUsed(rows))
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def _waits(engine: Engine) -> dict[str, feed.ModelWaits]:
    """Who waits for deployments' models, and what was seen of them since the last time."""
    counts, engine.cold.counts = engine.cold.counts, {}
    states = engine.cold.states
    models = counts.keys() | {model for model in engine.waiting.models() if model in states}
    nothing = ColdCounts()
    return {
        model: feed.ModelWaits(max(engine.waiting.size(model), seen.wanted), seen.served, seen.waited_s, seen.refused)
        for model in models
        for seen in (counts.get(model, nothing),)
    }
