"""The workers as the master sees them: spawned with their sockets, fed with tables, replaced when they die or hang.

Each slot has one worker that counts; a worker that was replaced drains beside it until it ends. The listening sockets
belong to the master, one per worker slot (SO_REUSEPORT). A new worker gets its predecessor's socket, so that connections
waiting in its backlog are not lost.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain

import structlog

from common import own_python, systemd
from common.exits import ConfigurationError
from common.http.access import require_guard
from common.http.serve import Address, explain_bind
from common.names import bind_address
from common.tasks import TaskFailed, TaskScope
from common.tokens import FlatRow
from common.wire.leases import LeaseRows
from router import feed, handover
from router.counters import BLOCKS_EACH, Shape, SharedCounters
from router.journal import folder_of
from router.keys import Key
from router.model import Table
from router.settings import RouterSettings
from router.worker_process import Worker

log = structlog.get_logger(__name__)
SILENCE_LIMIT_S = 15.0
"""A worker that does not beat for so long is hung: killed and replaced."""
START_TIMEOUT_S = 80.0
"""A worker may take so long to its first beat: on a busy machine one that is killed earlier is killed again and again. Less
than systemd's 90 s, so that it is us who say what happened."""
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "MALLOC_TOP_PAD_": str(4 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
}
"""glibc: keep what large bodies needed, rather than give it back to the kernel and fetch it again at every request."""
LAST_WORDS_S = 2.0
RESPAWN_FIRST_S = 0.2
RESPAWN_LAST_S = 10.0
_DOUBLINGS = 10
"""More lead to no other delay."""
NOT_STARTED = "see what the worker wrote before; the others serve, and it is tried again"


class WorkerPool:
    """All workers of a router.

    Args:
        settings: The router's settings; workers get them over the feed.
        control_path: Unix socket of the control plane.
        scope: Owner of the tasks that watch workers.
        environment: What workers inherit.
    """

    def __init__(
        self, settings: RouterSettings, control_path: str, scope: TaskScope, environment: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._control_path = control_path
        self._scope = scope
        self._shape = Shape(settings.max_endpoints, BLOCKS_EACH * settings.workers)
        self._counters_fd = SharedCounters.create(self._shape)
        self.counters = SharedCounters(self._counters_fd, self._shape)
        self._sockets: list[socket.socket] = []
        self._handovers: list[tuple[socket.socket, socket.socket]] = []
        self.port = 0
        """The port in use, once it is bound; known to the end."""
        self._workers: dict[int, Worker] = {}
        self._alive: set[Worker] = set()
        self._keys = feed.Keys(())
        self._certificates = feed.Certificates()
        self._serving = [asyncio.Event() for _ in range(settings.workers)]
        self._table = Table(0)
        self.adapter_wanted: Callable[[str, str], None] = lambda _adapter, _endpoint: None
        """Called with an adapter that a worker has requests for, and the endpoint that it would send them to."""
        self.standings: Callable[[], feed.Standings] = lambda: feed.Standings(())
        """How deployments' models stand, for a new worker."""
        self.heard_waits: Callable[[Mapping[str, feed.ModelWaits], Mapping[str, feed.ModelWaits]], None] = (
            lambda _before, _waits: None
        )
        """Called with what a worker said of deployments' models before, and says now."""
        self.tokens_used: Callable[[list[FlatRow]], None] = lambda _rows: None
        """Called with what a worker counted since its last word."""
        self.heard_leases: Callable[[str, LeaseRows, Callable[[feed.Grants], None]], None] = (
            lambda _worker, _rows, tell: tell(feed.Grants({}))
        )
        """Called with a worker, what it has of keys' limits, and how it is told what more it gets."""
        self.gone: Callable[[str], None] = lambda _worker: None
        """Called with a worker that has ended."""
        self._stopping = False
        self._rolling = asyncio.Lock()
        self._changing = [asyncio.Lock() for _ in range(settings.workers)]
        """Held while a slot gets another worker, which a roll and a death may want at the same time."""

    def bind(self) -> None:
        """Take the port, once per worker, or what a socket unit holds open between one router and the next.

        Raises:
            ConfigurationError: It cannot be had.
        """
        if sockets := systemd.sockets():
            self._take(sockets)
        else:
            self._bind()
        self._handovers = [handover.make_pair() for _ in self._sockets]
        self.port = int(self._sockets[0].getsockname()[1])

    def _bind(self) -> None:
        settings = self._settings
        address = Address(settings.host, settings.router_port)
        try:
            family, _, _, _, target = socket.getaddrinfo(
                bind_address(address.host), address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            # SO_REUSEPORT would let a second router share the port unseen: ask for it alone first.
            with socket.socket(family, socket.SOCK_STREAM) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind(target)
                target = alone.getsockname()
            for _ in range(settings.workers):
                listening = socket.socket(family, socket.SOCK_STREAM)
                self._sockets.append(listening)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                listening.bind(target)
                listening.listen(1024)
        except OSError as error:
            raise ConfigurationError(explain_bind(error, address, "router")) from error

    def _take(self, sockets: list[socket.socket]) -> None:
        """Listen on sockets that somebody else opened, whose addresses are judged as if they were our own."""
        settings, guarded = self._settings, self._settings.wants_keys
        for one in sockets:
            require_guard("router", one.getsockname()[0], guarded=guarded, insecure=settings.insecure_no_auth)
        if len(sockets) > settings.workers:  # nobody would accept at the others
            raise ConfigurationError(f"router: {len(sockets)} sockets are handed over for {settings.workers} workers")
        self._sockets = [sockets[index % len(sockets)].dup() for index in range(settings.workers)]
        log.info("router.socket_taken", sockets=len(sockets), address=sockets[0].getsockname()[:2])

    async def start(self, table: Table) -> None:
        """Spawn every worker with the first table and wait until all serve.

        Raises:
            TaskFailed: They do not come up.
        """
        self._table = table
        for index in range(self._settings.workers):
            self._scope.spawn(f"keep-worker-{index}", self._keep(index), service=True)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                for serving in self._serving:
                    await serving.wait()
        except TimeoutError as error:
            raise TaskFailed(f"the workers did not serve within {START_TIMEOUT_S:g} s") from error

    def publish(self, table: Table) -> None:
        """Give every worker a new table: what has changed since the one before."""
        changes, self._table = feed.Changes.between(self._table, table), table
        self._tell_all(changes)

    def tell_standings(self, standings: feed.Standings) -> None:
        """Tell every worker how deployments' models stand now."""
        self._tell_all(standings)

    def waiting(self) -> dict[str, int]:
        """Requests that wait for deployments' models, over all workers, those that drain too."""
        waiting: dict[str, int] = {}
        for worker in self._alive:
            for model, waits in (worker.status.waits if worker.status else {}).items():
                if waits.waiting:
                    waiting[model] = waiting.get(model, 0) + waits.waiting
        return waiting

    def set_keys(self, keys: tuple[Key, ...], *, required: bool = False) -> None:
        """Give every worker the API keys; `required`: without any, nobody is let in."""
        self._keys = feed.Keys(keys, required)
        self._tell_all(self._keys)

    def set_certificates(self, certificates: feed.Certificates) -> None:
        """Give every worker what it shows and believes, if that has changed: to load CAs takes milliseconds."""
        if certificates != self._certificates:
            self._certificates = certificates
            self._tell_all(certificates)

    def forgive(self, slot: int, endpoint: str) -> None:
        """Tell every worker that what it holds against an endpoint holds no more."""
        self.counters.eject(slot, 0.0, 0)
        self._tell_all(feed.Forgive(endpoint))

    async def roll(self, settings: RouterSettings | None = None) -> None:
        """Replace every worker, one after the other: the new one serves before the old one drains.

        With `settings` they get these; the address, the number of workers and the counters' size stay what they were:
        they need a restart.
        """
        async with self._rolling:
            self._settings = settings or self._settings
            await self._replace_all()

    async def _replace_all(self) -> None:
        for index in list(self._workers):
            async with self._changing[index]:
                if not await self._replace(index):
                    log.error("worker.roll_stopped", worker=index, reason="the new worker does not serve")
                    return

    async def _replace(self, index: int) -> bool:
        """Put another worker into a slot once it serves; False when it does not."""
        old, new = self._workers[index], await self._spawn(index)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(new.answered.wait(), START_TIMEOUT_S)
        if new.status is None or new.over.is_set():
            new.kill()
            return False
        self._workers[index] = new
        feed.write(old.writer, feed.Retire(hand_over=True))
        log.info("worker.rolled", worker=index, old_pid=old.process.pid, new_pid=new.process.pid)
        return True

    def connections(self) -> int:
        """Client connections, by their latest status."""
        return sum(worker.status.connections for worker in self._workers.values() if worker.status)

    def unreached(self) -> dict[str, tuple[int, str]]:
        """By endpoint id: requests in a row that could not reach it, over all workers, and a reason."""
        unreached: dict[str, tuple[int, str]] = {}
        for worker in self._workers.values():
            for key, (failures, reason) in (worker.status.unreached if worker.status else {}).items():
                unreached[key] = (unreached.get(key, (0, ""))[0] + failures, reason)
        return unreached

    def alive(self) -> int:
        """Workers that serve."""
        return sum(worker.status is not None and not worker.over.is_set() for worker in self._workers.values())

    async def stop(self) -> None:
        """Let every worker drain and end; kill those that do not."""
        self._stopping = True
        for listening in self._sockets:
            listening.close()
        workers = list(self._alive)
        for worker in workers:
            feed.write(worker.writer, feed.Retire(within_s=self._settings.drain_timeout_s))
        waits = [asyncio.ensure_future(worker.process.wait()) for worker in workers]
        if waits:
            _, late = await asyncio.wait(waits, timeout=self._settings.drain_timeout_s + 5.0)
            for wait in late:
                wait.cancel()
        for worker in workers:
            worker.kill()
            await worker.process.wait()
        with contextlib.suppress(TimeoutError):  # what they said last is read
            await asyncio.wait_for(asyncio.gather(*(worker.over.wait() for worker in workers)), LAST_WORDS_S)
        for end in chain.from_iterable(self._handovers):
            end.close()
        self.counters.close()
        os.close(self._counters_fd)

    async def _keep(self, index: int) -> None:
        """Have a worker in slot `index`, always: a new one when the present one ends without having been replaced.

        One that does not last is followed by the next after 0.4 s, and by each further one after twice as long, up to 10 s.
        """
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            async with self._changing[index]:
                if index not in self._workers or self._workers[index].over.is_set():
                    self._workers[index] = await self._spawn(index)
            serves = await self._ended(index)
            failures = 0 if serves and loop.time() - began > RESPAWN_LAST_S else failures + 1
            delay_s = min(RESPAWN_FIRST_S * 2 ** min(failures, _DOUBLINGS), RESPAWN_LAST_S)
            if not serves:
                log.error("worker.not_started", worker=index, failures=failures, next_try_s=delay_s, remedy=NOT_STARTED)
            await asyncio.sleep(delay_s)

    async def _ended(self, index: int) -> bool:
        """Wait until the worker of a slot has ended and nobody took its place; returns whether it ever served."""
        while True:
            worker = self._workers[index]
            await worker.over.wait()
            if self._stopping:
                await asyncio.Event().wait()  # the pool is ending; so will this task
            if self._workers[index] is worker:
                return worker.status is not None

    async def _free_block(self, index: int) -> int:
        """The one of the slot's two blocks that nobody counts in; one that still drains is given `drain_timeout_s` for it."""
        while True:
            held = {worker.block: worker for worker in self._alive}
            own = range(BLOCKS_EACH * index, BLOCKS_EACH * (index + 1))
            for block in own:
                if block not in held:
                    return block
            present = self._workers.get(index)
            leaving = next(held[block] for block in own if held[block] is not present)
            feed.write(leaving.writer, feed.Retire(hand_over=True, within_s=self._settings.drain_timeout_s))
            await leaving.over.wait()

    async def _spawn(self, index: int) -> Worker:
        block = await self._free_block(index)
        ours, theirs = socket.socketpair()
        with theirs:
            pair = [end.fileno() for end in self._handovers[index]]
            descriptors = (theirs.fileno(), self._counters_fd, self._sockets[index].fileno(), *pair)
            process = await asyncio.create_subprocess_exec(
                *own_python.command("router.worker_main", *map(str, descriptors)),
                "compiled" if self._settings.compiled else "sources",
                pass_fds=descriptors,
                stdin=asyncio.subprocess.DEVNULL,
                env={**own_python.environment(self._environment), **ALLOCATOR},
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = Worker(process, writer, block)
        self._alive.add(worker)
        settings = self._settings.model_dump_json()
        plan = feed.WorkerSetup(
            index,
            len(self._sockets),
            block,
            self._shape.slots,
            settings,
            self._control_path,
            self._certificates,
            usage_folder=str(folder_of(self._settings.data_dir, self.port)),
        )
        feed.write(writer, plan)
        feed.write(writer, self._keys)
        feed.write(writer, self.standings())
        feed.write(writer, feed.Endpoints(self._table.version, self._table.endpoints))
        self._scope.spawn(f"hear-worker-{index}", self._hear(index, worker, reader))
        return worker

    async def _hear(self, index: int, worker: Worker, reader: asyncio.StreamReader) -> None:
        """Read a worker's status until it is gone; kill it when it goes silent."""
        try:
            while True:
                limit_s = START_TIMEOUT_S if worker.status is None else SILENCE_LIMIT_S
                message = await asyncio.wait_for(feed.read(reader), limit_s)
                if message is None:
                    break
                self._heard(index, worker, message)
        except TimeoutError:
            log.error("worker.hung", worker=index, pid=worker.process.pid, silent_s=limit_s)
            worker.kill()
        code = await worker.process.wait()
        if code and not self._stopping:
            log.error("worker.died", worker=index, pid=worker.process.pid, exit_code=code)
        worker.writer.close()
        if not self._stopping:  # else nobody reads it any more
            self.counters.clear_in_flight(worker.block)
        self._alive.discard(worker)
        self.gone(worker.name)
        worker.over.set()
        worker.answered.set()

    def _heard(self, index: int, worker: Worker, message: feed.Message) -> None:
        match message:
            case feed.AdapterWanted():
                self.adapter_wanted(message.adapter, message.endpoint)
            case feed.Leases():
                self.heard_leases(worker.name, message.rows, partial(feed.write, worker.writer))
            case feed.TokensUsed():
                self.tokens_used(message.rows)
            case feed.WorkerStatus():
                if worker.status is None:
                    log.info("worker.serving", worker=index, pid=worker.process.pid, compiled=message.compiled)
                before, worker.status = worker.status, message
                if message.waits:
                    self.heard_waits(before.waits if before is not None else {}, message.waits)
                self._serving[index].set()
                worker.answered.set()
            case _:
                pass

    def _tell_all(self, message: feed.Message) -> None:
        for worker in self._alive:
            feed.write(worker.writer, message)
