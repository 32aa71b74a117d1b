"""Looking at the server while there is one: is it busy starting, where does it listen, does it answer as it should?"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from babysitter import events as ev
from babysitter.adapters import AdapterKeeper
from babysitter.attempt import ServerAttempt
from babysitter.engine_health import EngineHealth
from babysitter.engine_metrics import Work
from babysitter.footprint import memory_bytes
from babysitter.identity import Identity
from babysitter.lifecycle import PROBED, ReplicaState
from babysitter.port_finder import port_in_file, port_in_log
from babysitter.probe import NotListening, NotReady, ServerProbe, stranger_on_port
from babysitter.run_meta_tail import Mark, mark_of
from babysitter.server_log import ServerLog
from babysitter.spec import Spec
from common.atomic_file import read_bounded
from common.log_tail import tail
from common.wire.address import url
from common.wire.base import ModelObject

PORT_FILE_LIMIT_BYTES = 4096
READY_LINE_WITHIN_BYTES = 256 << 10
FIRST_PAUSE_S = 0.1
MEMORY_STEP_BYTES = 16 << 20
LOOKING_SHARE = 0.02
"""Most of the time that may be spent on looking through all processes of the machine, and on adding up a server's pages."""
Result = TypeVar("Result")
Words = ParamSpec("Words")


class ServerWatcher:
    """Looks at one server and tells what it sees.

    Args:
        spec: The replica.
        probe: Asks the server.
        engine: Has the engine prove that it works.
        log: The server's output.
        state: Tells the replica's state now.
        attempt: Tells the attempt now.
        busy: Changes whenever something but the log shows that the server works.
        tell: Takes events.
        models_seen: Takes the model objects of every good look.
        adapters: Loads adapters that its list lacks.
        check: Raises `NotReady` while the engine is not to be asked for anything.
    """

    def __init__(
        self,
        spec: Spec,
        probe: ServerProbe,
        engine: EngineHealth,
        log: ServerLog,
        *,
        state: Callable[[], ReplicaState],
        attempt: Callable[[], ServerAttempt | None],
        busy: Callable[[], object],
        tell: Callable[[ev.Event], None],
        models_seen: Callable[[list[ModelObject]], None],
        adapters: AdapterKeeper,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.looking = asyncio.Lock()
        """Held during each look."""
        self.port = spec.addresses.port
        self.moved = asyncio.Event()
        self.is_proven = False
        """The server has shown that it works: an adopted one may be too busy to show it again at once."""
        self._spec = spec
        self._prober = probe
        self._engine = engine
        self._adapters = adapters
        self._check = check
        self._log = log
        self._state = state
        self._attempt = attempt
        self._busy = busy
        self._tell = tell
        self._models_seen = models_seen
        self._members: tuple[Identity, ...] = ()
        self._members_at = 0.0
        self._memory_bytes = 0
        self._memory_at = 0.0
        self._port_mark: Mark | None = None
        self._began_at = 0.0

    def reload(self, spec: Spec, probe: ServerProbe, engine: EngineHealth) -> None:
        """Look as these say from now on."""
        self._spec, self._prober, self._engine = spec, probe, engine

    @property
    def memory_mb(self) -> int:
        """Memory of the server's processes, in MiB, in coarse steps so that few heartbeats differ."""
        return self._memory_bytes // MEMORY_STEP_BYTES * MEMORY_STEP_BYTES >> 20

    @property
    def is_degraded(self) -> bool:
        """The server takes more memory than its soft limit."""
        return self._spec.memory_soft_bytes is not None and self._memory_bytes > self._spec.memory_soft_bytes

    @property
    def work(self) -> Work | None:
        """What the engine of this attempt told of its work, where it does."""
        return self._engine.work if self.is_proven else None

    def recall(self, port: int, *, proven: bool) -> None:
        """An adopted server's: its ready line may be old by now, or have been written while nobody looked."""
        self.port = port
        self.is_proven = proven

    def new_attempt(self) -> None:
        """A server is about to be started: what its port file says now is not its own."""
        self.port = self._spec.addresses.port
        self.is_proven = False
        self._port_mark = self._mark()
        self._began_at = time.monotonic()
        self._members, self._members_at, self._memory_bytes, self._memory_at = (), 0.0, 0, 0.0

    def look_soon(self) -> None:
        """The server lists other models by now."""
        self.moved.set()

    async def is_at_rest(self) -> bool:
        """True when the engine says, asked now, that it has no request."""
        return await self._engine.is_at_rest(url(self._spec.addresses.local, self.port))

    def doubt(self) -> None:
        """Look now, and have the engine show that it works."""
        self._engine.doubt()
        self.moved.set()

    async def run(self) -> None:
        """Look until cancelled; between looks, wait for the interval or a change of state (`moved`)."""
        seen: object = None
        while True:
            self.moved.clear()
            state = self._state()
            if state not in PROBED:
                await self.moved.wait()
                continue
            if state is ReplicaState.WAITING_FOR_READY:
                await asyncio.to_thread(self._follow_log)
                now_seen = (self._log.fingerprint(), self._busy())
                if now_seen != seen:
                    seen = now_seen
                    self._tell(ev.StartProgress())
                await asyncio.to_thread(self._find_port)
            async with self.looking:
                await self._look()
            await self._weigh()
            serving = self._state() in (ReplicaState.READY, ReplicaState.DRAINING)
            starting_s = start_pause_s(time.monotonic() - self._began_at, self._spec.start_interval_s)
            await self._pause(self._spec.interval_s if serving else starting_s)

    async def _look(self) -> None:
        attempt, server_url = self._attempt(), url(self._spec.addresses.local, self.port)
        steps = self._adapters.steps
        try:
            self._check()
            models = await self._prober.look(server_url)
            is_child = not self._spec.stop_command
            if self._state() is ReplicaState.WAITING_FOR_READY and attempt is not None and is_child:
                stranger = await asyncio.to_thread(stranger_on_port, self.port, attempt.members)
                if stranger is not None:
                    raise NotListening(f"port {self.port} is answered by a stranger, {stranger}")
            if models:
                await self._prove(server_url, str(models[0]["id"]))
            starts = self._state() is ReplicaState.WAITING_FOR_READY
            if await self._adapters.look(server_url, models, steps=steps, starts=starts):
                models = await self._prober.look(server_url)
        except NotReady as error:
            if not isinstance(error, NotListening):
                self._tell(ev.PortFound())
            self._tell(ev.ProbeBad(str(error)))
            return
        self._models_seen([*models])
        self._tell(ev.ProbeGood())

    async def _prove(self, server_url: str, model: str) -> None:
        """Believe a list of models only from an engine that works."""
        if not self.is_proven:
            await self._engine.start(server_url, model)
            self.is_proven = True
        else:
            await self._engine.look(server_url, model, self.port)

    async def _weigh(self) -> None:
        """Note who belongs to the server, and measure their memory against its hard limit (A16)."""
        attempt, hard = self._attempt(), self._spec.memory_hard_bytes
        if attempt is not None and time.monotonic() >= self._members_at:
            self._members, self._members_at = await _sparingly(attempt.members)
        if time.monotonic() >= self._memory_at:
            self._memory_bytes, self._memory_at = await _sparingly(memory_bytes, self._members)
        if hard is not None and self._memory_bytes > hard:
            self._tell(ev.OverLimit(f"takes {self._memory_bytes >> 20} MiB, more than its {hard >> 20} MiB"))

    def _follow_log(self) -> None:
        with contextlib.suppress(OSError):  # the keeper of the files, which looks as well, tells of it
            self._log.look()

    def _find_port(self) -> None:
        """The port as before, at first as told, unless the server's own file or its ready line names another (docs/contract.md 3 and 5)."""
        port = self._written_port()
        if port is None and self._spec.addresses.port_in_log:
            since = self._log.marks.get(self._log.stdout, 0)
            port = port_in_log(tail(self._log.stdout, READY_LINE_WITHIN_BYTES, since=since))
        self.port = port or self.port

    def _written_port(self) -> int | None:
        path, mark = self._spec.addresses.port_file, self._mark()
        if path is None or mark is None or mark == self._port_mark:
            return None
        try:
            return port_in_file(read_bounded(path, limit_bytes=PORT_FILE_LIMIT_BYTES))
        except (OSError, ValueError):
            return None

    def _mark(self) -> Mark | None:
        path = self._spec.addresses.port_file
        return mark_of(path) if path is not None else None

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.moved.wait(), seconds)
        except TimeoutError:
            return


def start_pause_s(taken_s: float, most_s: float) -> float:
    """Until the next look at a server that starts for `taken_s`: a quarter of that, so that one is seen soon that takes a second."""
    return min(most_s, max(FIRST_PAUSE_S, taken_s / 4))


async def _sparingly(work: Callable[Words, Result], *words: Words.args, **named: Words.kwargs) -> tuple[Result, float]:
    """What `work` gives, and when (monotonic) it may be done again to take its share of the time and no more."""
    began = time.monotonic()
    result = await asyncio.to_thread(work, *words, **named)
    ended = time.monotonic()
    return result, ended + (ended - began) / LOOKING_SHARE
