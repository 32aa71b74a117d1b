"""The shell around the machine: the one writer of a replica's state. Events come in by a queue, effects go out."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, assert_never

import structlog

from babysitter import events as ev
from babysitter import ports
from babysitter.attempt import Attempt, Command
from babysitter.home import Home
from babysitter.machine import ALIVE, PROBED, Policy, Replica, State, display_status, step, wire_status
from babysitter.memory import Memory
from babysitter.probe import NotReady, Prober, stranger_on_port
from babysitter.server_log import ServerLog
from babysitter.view import View, report
from common.clock import Clock, iso
from common.tasks import TaskScope

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Spec:
    """What does not change in a babysitter's life.

    `bind_host` is where the server listens, `host` where others reach it; intervals in seconds.
    """

    name: str
    label: str
    host: str
    bind_host: str
    port: int
    command: Command
    policy: Policy
    heartbeat_s: float
    start_interval_s: float
    interval_s: float
    metadata: dict[str, Any] = field(default_factory=dict)
    weight: float | None = None


class Supervisor:
    """Owns one replica.

    Args:
        spec: What it is.
        home: Where it lives; its lock is held.
        memory: What the last babysitter knew.
        prober: Looks at the server.
        clock: Time.
        rng: Jitter.
        changed: Called after every change that others should know.
    """

    def __init__(
        self,
        spec: Spec,
        home: Home,
        memory: Memory,
        prober: Prober,
        *,
        clock: Clock,
        rng: random.Random,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec = spec
        self.home = home
        self.memory = memory
        self.changed = changed
        self.finished = asyncio.Event()
        self._prober = prober
        self._clock = clock
        self._rng = rng
        self._log = ServerLog(spec.command.stdout, spec.command.stderr)
        self._events: asyncio.Queue[ev.Event] = asyncio.Queue()
        self._replica = Replica(since=clock.monotonic(), restarts=memory.restarts, failures=memory.failures)
        self._attempt: Attempt | None = None
        self._adopted = False
        self._scope: TaskScope | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._moved = asyncio.Event()
        self._updated_at = iso(clock.utcnow())

    @property
    def state(self) -> State:
        """Where the replica is."""
        return self._replica.state

    def tell(self, event: ev.Event) -> None:
        """Something happened."""
        self._events.put_nowait(event)

    def view(self) -> View:
        """A picture of the replica now."""
        replica, memory = self._replica, self.memory
        waits_s = None
        if replica.state is State.BACKING_OFF and replica.wake_at is not None:
            waits_s = round(max(0.0, replica.wake_at - self._clock.monotonic()), 3)
        server = self._attempt.server if self._attempt is not None else None
        alive = replica.state in ALIVE
        return View(
            name=self.spec.name,
            label=self.spec.label,
            host=self.spec.host,
            port=self.spec.port,
            state=replica.state,
            instance_id=memory.instance_id,
            incarnation=memory.incarnation,
            heartbeat_s=self.spec.heartbeat_s,
            created_at=memory.created_at or self._updated_at,
            updated_at=self._updated_at,
            ready_at=memory.ready_at,
            models=tuple(memory.models),
            metadata=self.spec.metadata,
            weight=self.spec.weight,
            restart_count=replica.restarts,
            replica_pid=server.pid if server is not None and alive else None,
            workdir=str(self.spec.command.cwd),
            error_message=replica.error,
            next_restart_in_s=waits_s,
            stalled=replica.stalled,
            persist_failed=self.home.state.failure,
            serves=alive and server is not None,
            settling=self._adopted and replica.state is State.WAITING_FOR_READY and replica.error is None,
        )

    async def adopt(self) -> bool:
        """Look for the server of an earlier babysitter; True when it lives. Nothing is started yet."""
        known = [self.memory.attempt] if self.memory.attempt else self.home.live_attempts()
        for identifier in known:
            attempt = self.home.attempt(identifier, grace_s=self.spec.command.grace_s)
            found = await attempt.find()
            self._attempt = attempt
            if found is not None:
                log.info("server.adopted", pid=found.pid, attempt=identifier)
                return True
        return False

    async def start(self, scope: TaskScope) -> None:
        """Begin to look after the replica, whatever state it was left in."""
        self._scope = scope
        self._log.mark()
        attempt = self._attempt
        if attempt is not None and attempt.server is not None:
            self.memory.attempt = attempt.uuid
            self._adopted = True
            self.tell(ev.Adopted(attempt.server.pid))
            scope.spawn(f"attempt.{attempt.uuid[:8]}", self._await_end(attempt))
        else:
            self.memory.models = []
            ended = attempt is not None and attempt.has_ended
            self.tell(self._exited(attempt.outcome()) if attempt is not None and ended else ev.Begin())
        scope.spawn("events", self._serve_events(), service=True)
        scope.spawn("probes", self._probe(), service=True)

    async def leave(self) -> None:
        """Let go of the server without ending it."""
        if self._timer is not None:
            self._timer.cancel()
        if self._attempt is not None:
            await self._attempt.close()

    async def _serve_events(self) -> None:
        while True:
            await self._apply(await self._events.get())

    async def _apply(self, event: ev.Event) -> None:
        """One step of the machine, remembered before it is acted upon."""
        before = self._replica
        self._replica, effects = step(before, event, self.spec.policy, self._clock.monotonic())
        moved = self._replica.state is not before.state
        if moved:
            self._tell_story(before)
        if moved or self._replica.error != before.error or self._replica.stalled != before.stalled:
            self._updated_at = iso(self._clock.utcnow())
            await self.persist()
            self.changed()
        self._arm()
        for effect in effects:
            await self._carry_out(effect)

    def _tell_story(self, before: Replica) -> None:
        """Log the move and add it to the timeline."""
        now, move = self._clock.utcnow(), self._replica.story[-1]
        if self._replica.state is State.READY:
            self.memory.ready_at = iso(now)
        if self._replica.state is State.STOPPED:
            self.memory.attempt = None
        self._moved.set()
        self.memory.remember(
            {
                "at": iso(now),
                "from": before.state.value,
                "to": self._replica.state.value,
                "cause": move.cause,
                "lasted_s": round(move.lasted_s, 3),
            }
        )
        log.info("replica.moved", before=before.state, after=self._replica.state, cause=move.cause)

    async def persist(self) -> None:
        """Write the state file; a disk that refuses is told in reports and does not stop the supervision (B9)."""
        memory, replica = self.memory, self._replica
        memory.restarts, memory.failures = replica.restarts, replica.failures
        content = {
            **report(self.view()),
            "status": wire_status(replica.state),
            "display_status": display_status(replica.state),
            "memory": memory.to_json(),
        }
        await asyncio.to_thread(self.home.state.save, content)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._replica.wake_at is not None:
            wait_s = max(0.0, self._replica.wake_at - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait_s, self.tell, ev.Woke())

    async def _carry_out(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Spawn():
                await self._spawn()
            case ev.Terminate(force=force):
                if self._attempt is not None:
                    self._attempt.end(force=force)
            case ev.Drain():
                self._spawn_task("drain", self._drain())
            case ev.Finish():
                self.finished.set()
            case ev.Deploy():
                self.tell(ev.Deployed())
            case ev.AbortDeploy() | ev.CancelJobs():
                pass
            case _:
                assert_never(effect)

    async def _spawn(self) -> None:
        """Start a new attempt; the intent is on disk before the process is (B3)."""
        taken = ports.complaint(self.spec.bind_host, self.spec.port, f"{self.spec.name} (its server)")
        if taken is not None:
            self.tell(self._exited(ev.Exited(error=f"port_in_use: {taken}")))
            return
        self.memory.attempt = self.home.new_attempt()
        self.memory.attempts += 1
        attempt = self.home.attempt(self.memory.attempt, grace_s=self.spec.command.grace_s)
        self._attempt = attempt
        self._adopted = False
        await self.persist()
        try:
            self._log.mark()
            self.home.forget_old_attempts(attempt.uuid)
            labels = {"name": self.spec.name, "instance_id": self.memory.instance_id}
            ready = attempt.begin(self.spec.command, labels)
        except OSError as error:
            self.tell(self._exited(ev.Exited(error=f"cannot start the server: {error}")))
            return
        self._spawn_task(f"attempt.{attempt.uuid[:8]}", self._follow(attempt, ready))

    async def _follow(self, attempt: Attempt, ready: int) -> None:
        server = await attempt.started(ready)
        if server is not None:
            self.tell(ev.Spawned(server.pid))
        await self._await_end(attempt)

    async def _await_end(self, attempt: Attempt) -> None:
        outcome = await attempt.ended()
        self.tell(self._exited(outcome))

    def _exited(self, outcome: ev.Exited) -> ev.Exited:
        tail = self._log.tail(ev.LOG_TAIL_LIMIT_BYTES)
        return ev.Exited(outcome.code, outcome.signal, outcome.error, tail, self._rng.random())

    async def _drain(self) -> None:
        """The record already says that the server is leaving; give the routers a moment to hear it."""
        await asyncio.sleep(min(1.0, self.spec.policy.drain_s))
        self.tell(ev.Drained())

    async def _probe(self) -> None:
        """Look at the server while there is one to look at."""
        seen = None
        while True:
            self._moved.clear()
            state = self._replica.state
            if state not in PROBED:
                await self._moved.wait()
                continue
            if state is State.WAITING_FOR_READY and (now_seen := self._log.fingerprint()) != seen:
                seen = now_seen
                self.tell(ev.Progress())
            await self._look()
            slow = self._replica.state is State.READY
            await self._pause(self.spec.interval_s if slow else self.spec.start_interval_s)

    async def _look(self) -> None:
        waiting = self._replica.state is State.WAITING_FOR_READY
        try:
            models = await self._prober.look()
            if waiting and self._attempt is not None:
                stranger = await asyncio.to_thread(stranger_on_port, self.spec.port, self._attempt.uuid)
                if stranger is not None:
                    raise NotReady(f"port {self.spec.port} is answered by a stranger, {stranger}")
        except NotReady as error:
            self.tell(ev.ProbeBad(str(error)))
            return
        if list(models) != self.memory.models:
            self.memory.models = [dict(model) for model in models]
            self.changed()
        self.tell(ev.ProbeGood())

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._moved.wait(), seconds)
        except TimeoutError:
            return

    def _spawn_task(self, name: str, work: Any) -> None:
        if self._scope is None:
            raise RuntimeError("the supervisor was not started")
        self._scope.spawn(name, work)


def new_memory(memory: Memory, *, instance_id: str, epoch_s: int, now: str) -> Memory:
    """The memory of a babysitter that begins: a replica keeps its name, each life has a higher incarnation (C6)."""
    memory.instance_id = memory.instance_id or instance_id
    memory.incarnation = max(memory.incarnation + 1, epoch_s)
    memory.created_at = memory.created_at or now
    memory.desired = "running"
    return memory
