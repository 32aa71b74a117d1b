"""The shell around the machine: the one writer of a replica's state. Events come in by a queue, effects go out."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import assert_never

import structlog
from msgspec import to_builtins
from msgspec.structs import asdict

from babysitter import events as ev
from babysitter import log_keeper
from babysitter.adapters import AdapterKeeper
from babysitter.attempt import ServerAttempt
from babysitter.deployment import Deployment
from babysitter.engine_health import EngineHealth
from babysitter.fitting import kept_models
from babysitter.home import Home
from babysitter.job_keeper import JobKeeper
from babysitter.lifecycle import ALIVE, SLEEPING, Lifecycle, ReplicaState
from babysitter.machine import step
from babysitter.memory import Memory, SavedReplica
from babysitter.probe import ServerProbe, fetch_json
from babysitter.server_log import ServerLog
from babysitter.server_runner import ServerRunner
from babysitter.sleeper import Sleeper
from babysitter.spec import Spec
from babysitter.view import View
from babysitter.viewer import Viewer
from babysitter.watcher import ServerWatcher
from common.clock import Clock, iso
from common.tasks import TaskScope
from common.wire.address import url
from common.wire.base import ModelObject
from common.wire.replica import Transition

log = structlog.get_logger(__name__)
DIAGNOSTICS_TIMEOUT_S = 120.0


class Supervisor:
    """Owns one replica.

    Args:
        spec: What it is.
        home: Where it lives; its lock is held.
        memory: What the last babysitter knew.
        probe: Looks at the server.
        engine: Proves that it works.
        clock: Time.
        rng: Jitter.

    Listeners in `on_change` are called after every change that others should know, those in `on_move` after every move
    from state to state; `finished` is set when the replica is stopped.
    """

    def __init__(
        self,
        spec: Spec,
        home: Home,
        memory: Memory,
        probe: ServerProbe,
        engine: EngineHealth,
        *,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.spec = spec
        self.home = home
        self.memory = memory
        self._was = memory.state
        self.on_change: list[Callable[[], None]] = []
        self.on_move: list[Callable[[], None]] = []
        self.finished = asyncio.Event()
        self.log = ServerLog(spec.logs.stdout, spec.logs.stderr)
        self._clock = clock
        self._events: asyncio.Queue[ev.Event] = asyncio.Queue()
        self._life = Lifecycle(
            since=clock.monotonic(), restarts=memory.restarts, spent=memory.spent, failures=memory.failures
        )
        self._scope: TaskScope | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writing = asyncio.Lock()
        self._session = probe.session
        self._jobs = JobKeeper(spec.jobs, memory.jobs, clock=clock, seen=self._jobs_seen, persist=self.persist)
        self._runner = ServerRunner(
            spec,
            home,
            memory,
            self.log,
            self._jobs,
            rng=rng,
            state=lambda: self.state,
            tell=self.tell,
            persist=self.persist,
            starting=self._new_attempt,
        )
        self._deployment = Deployment(
            memory, tell=self.tell, persist=self.persist, made=self._runner.use, seen=self._stage_seen
        )
        self.adapters = AdapterKeeper(
            spec,
            memory.adapters,
            probe.session,
            is_ready=lambda: self.state is ReplicaState.READY,
            persist=self.persist,
            changed=self._adapters_changed,
            look=lambda: self._watcher.look_soon(),  # noqa: PLW0108 - it is made below
        )
        self._watcher = ServerWatcher(
            spec,
            probe,
            engine,
            self.log,
            state=lambda: self.state,
            attempt=lambda: self._runner.attempt,
            busy=self._jobs.mark,
            tell=self.tell,
            models_seen=self._models_seen,
            adapters=self.adapters,
            check=lambda: self.sleeper.check(),  # noqa: PLW0108 - it is made below
        )
        self.sleeper = Sleeper(
            spec,
            memory,
            probe.session,
            clock=clock,
            looking=self._watcher.looking,
            state=lambda: self.state,
            url=lambda: url(self.spec.addresses.local, self._watcher.port),
            tell=self.tell,
            seen=self._stage_seen,
            look=self._watcher.look_soon,
        )
        self._viewer = Viewer(
            memory, home, self._runner, self._watcher, jobs=self._jobs, adapters=self.adapters, now=iso(clock.utcnow())
        )

    @property
    def state(self) -> ReplicaState:
        """Where the replica is."""
        return self._life.state

    @property
    def is_stopping(self) -> bool:
        """True from the moment that somebody asked for a stop for good."""
        return self.memory.desired == "stopped"

    def tell(self, event: ev.Event) -> None:
        """Something happened."""
        self._events.put_nowait(event)

    async def stop_for_good(self, reason: str, *, force: bool) -> None:
        """A stop that is finished even if this babysitter is not there to do it (W53): it is on disk when this returns."""
        self.memory.desired = "stopped"
        self.tell(ev.StopRequested(reason, force=force))
        await self.persist()

    def reload(self, spec: Spec, probe: ServerProbe, engine: EngineHealth) -> None:
        """Look after the replica as `spec` says from now on; a new command is that of the next start.

        A failed replica begins again: its file may have been mended (W56).
        """
        self.spec = replace(spec, deployer=self.spec.deployer, deploy_mark=self.spec.deploy_mark)
        self._runner.reload(self.spec)
        self._watcher.reload(self.spec, probe, engine)
        self.adapters.reload(self.spec)
        self.sleeper.reload(self.spec)
        if self.state is ReplicaState.FAILED and self.spec.peers is None:
            self.tell(ev.Retry(deploy=self.spec.deployer is not None))
        self._changed()

    def doubt(self, reason: str) -> None:
        """Somebody got nothing from the server: have it prove itself now, whatever it says of itself."""
        log.warning("server.doubted", reason=reason)
        self._watcher.doubt()

    def note_settings(self, waiting: tuple[str, ...], refused: str | None) -> None:
        """Settings of the file that wait for a restart of the babysitter, and what is wrong with the file."""
        self._viewer.note(need_restart=waiting, config_refused=refused)
        self._changed()

    def note_ending(self) -> None:
        """Its job ends soon: another replica should be there by then."""
        self._viewer.note(ending=True)
        self._changed()

    def note_refusal(self, reason: str | None) -> None:
        """Why a registry will not have a record of the replica; None: it has."""
        self._viewer.note(registration_error=reason)
        self._changed()

    def view(self) -> View:
        """The replica now."""
        return self._viewer.view(self.spec, self._life)

    async def adopt(self) -> bool:
        """Look for the server of an earlier babysitter; True when it lives. What one that died has left is ended."""
        return await self._runner.find()

    async def start(self, scope: TaskScope) -> None:
        """Begin to look after the replica, whatever state it was left in."""
        self._scope = scope
        self.log.mark()
        await self._deployment.end_old()
        runner, attempt = self._runner, self._runner.attempt
        unfinished = self.is_stopping and attempt is not None and (attempt.server is not None or attempt.has_ended)
        if not unfinished:
            self.memory.desired = "running"
        if attempt is not None and runner.has_server:
            adopted = self._recall(attempt)
            await runner.adopt(scope, attempt)
            self._tell_first(adopted)
        else:
            self.memory.models = []
            if (ended := await runner.last_end()) is not None:
                self._tell_first(ended)
            elif not unfinished:
                alone = self.spec.peers is not None and self.memory.attempts  # none of a group starts again by itself
                deploy = self.spec.deployer is not None
                self._tell_first(ev.Exited(error="its server is gone") if alone else ev.Begin(deploy=deploy))
        if unfinished:
            log.info("replica.stop_resumed")
            self.tell(ev.StopRequested("the stop that was asked of an earlier babysitter"))
        scope.spawn("events", self._serve_events(), service=True)
        scope.spawn("probes", self._watcher.run(), service=True)
        scope.spawn("adapters", self.adapters.run(), service=True)
        if self.spec.jobs.state_command:
            scope.spawn("job_states", self._jobs.watch_states(), service=True)
        scope.spawn("files", self._keep_files(), service=True)

    def _recall(self, attempt: ServerAttempt) -> ev.Adopted:
        """What is remembered of a server that was found; one that may sleep is believed nothing before it was woken."""
        may_sleep, slept = self.spec.sleep is not None, self._was in SLEEPING
        known = bool(self.memory.port) and attempt.uuid == self.memory.attempt
        proven = known and (self._was == ReplicaState.READY or not (may_sleep or slept))
        if known:
            self._watcher.recall(self.memory.port, proven=proven)
        if may_sleep and not proven:
            self.sleeper.recall(slept=slept)
        pid = attempt.server.pid if attempt.server is not None else 0
        return ev.Adopted(pid, asleep=may_sleep and slept, dazed=may_sleep and not proven)

    async def leave(self) -> None:
        """Let go of the server without ending it."""
        if self._timer is not None:
            self._timer.cancel()
        await self._runner.leave()
        self.log.close()

    async def persist(self) -> None:
        """Write the state file; a disk that refuses is told in reports and does not stop the supervision (B9)."""
        async with self._writing:
            memory, life = self.memory, self._life
            memory.restarts, memory.spent, memory.failures = life.restarts, life.spent, life.failures
            memory.state = life.state.value
            content = to_builtins(SavedReplica(**asdict(self.view().report), memory=memory))
            await asyncio.to_thread(self.home.state.save, content)

    def _changed(self) -> None:
        for listener in self.on_change:
            listener()

    def _tell_first(self, event: ev.Event) -> None:
        """Tell how the replica was found, before what was asked meanwhile: a stop is then a stop of what is there (E2)."""
        asked = [self._events.get_nowait() for _ in range(self._events.qsize())]
        for one in (event, *asked):
            self.tell(one)

    async def _serve_events(self) -> None:
        while True:
            await self._apply(await self._events.get())

    async def _apply(self, event: ev.Event) -> None:
        """One step of the machine, remembered before it is acted upon."""
        before = self._life
        self._life, effects = step(before, event, self.spec.policy, self._clock.monotonic())
        moved = self._life.state is not before.state
        if moved:
            self._tell_story(before)
        if moved or any(getattr(self._life, name) != getattr(before, name) for name in ("error", "stalled", "late")):
            self._viewer.note(updated_at=iso(self._clock.utcnow()))
            await self.persist()
            self._changed()
        self._arm()
        for effect in effects:
            await self._carry_out(effect)

    def _tell_story(self, before: Lifecycle) -> None:
        """Log the move and add it to the timeline."""
        now, life = self._clock.utcnow(), self._life
        move, restart_at = life.story[-1], None
        if life.state is ReplicaState.BACKING_OFF and life.wake_at is not None:
            restart_at = iso(now + timedelta(seconds=life.wake_at - life.since))
        self._viewer.note(next_restart_at=restart_at)
        if life.state is ReplicaState.READY:
            self.memory.ready_at = iso(now)
            self.memory.port = self._watcher.port
            if self.spec.diagnostics and self.memory.diagnostics is None:
                self._open_scope().spawn("diagnostics", self._fetch_diagnostics())
        if life.state in SLEEPING:
            self._watcher.is_proven = False
        if life.state is ReplicaState.STOPPED:
            self.memory.attempt = None
        self._watcher.moved.set()
        self.memory.remember(
            Transition(
                at=iso(now),
                before=before.state.value,
                after=life.state.value,
                cause=move.cause,
                lasted_s=round(move.lasted_s, 3),
            )
        )
        log.info("replica.moved", before=before.state, after=life.state, cause=move.cause)
        for listener in self.on_move:
            listener()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._life.wake_at is not None:
            wait_s = max(0.0, self._life.wake_at - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait_s, self.tell, ev.Woke())

    async def _carry_out(self, effect: ev.Effect) -> None:
        scope = self._open_scope()
        match effect:
            case ev.Spawn():
                await self._runner.spawn(scope)
            case ev.Terminate(force=force):
                self._runner.end(scope, force=force)
            case ev.DrainRequests():
                self._runner.drain(scope, self._watcher.port, self._watcher.is_at_rest)
            case ev.SleepEngine() | ev.WakeEngine():
                self.sleeper.begin(scope, effect)
            case ev.Deploy():
                await self._deployment.begin(scope, self.spec)
            case ev.AbortDeploy():
                self._deployment.abort()
            case ev.CancelJobs():
                self._jobs.cancel_orphans(scope, self.memory.attempt if self.state in ALIVE else None)
            case ev.Finish():
                scope.spawn("finish", self._finish())
            case _:
                assert_never(effect)

    async def _finish(self) -> None:
        await self._jobs.settled()
        self.finished.set()

    async def _keep_files(self) -> None:
        """Keep the server's output in bounds (A18), and write what the disk refused before (B9)."""
        while True:
            await asyncio.sleep(self.spec.logs.check_s)
            if self.home.state.failure is not None:
                await self.persist()
            await asyncio.to_thread(log_keeper.keep, self.log, self.spec.logs)

    async def _fetch_diagnostics(self) -> None:
        url = f"{self.view().report.base_url}/diagnostics"
        self.memory.diagnostics = await fetch_json(self._session, url, timeout_s=DIAGNOSTICS_TIMEOUT_S)
        await self.persist()

    def _new_attempt(self) -> None:
        self._watcher.new_attempt()
        self.adapters.new_attempt()
        self.sleeper.new_attempt()

    def _adapters_changed(self) -> None:
        self.memory.models = self.adapters.shown(self.memory.models)
        self._changed()

    def _models_seen(self, models: list[ModelObject]) -> None:
        if self.state is ReplicaState.WAITING_FOR_READY:
            self._jobs.look()  # who sees it ready is to see all of its jobs
        kept = kept_models(self.adapters.shown(models), self.memory.models)
        if kept != self.memory.models:
            self.memory.models = kept
            if self.state is not ReplicaState.WAITING_FOR_READY:  # that is about to be ready, which tells of these too
                self._changed()

    def _jobs_seen(self) -> None:
        self.tell(ev.StartProgress())
        self._stage_seen()

    def _stage_seen(self) -> None:
        self._open_scope().spawn("persist", self.persist())
        self._changed()

    def _open_scope(self) -> TaskScope:
        if self._scope is None:
            raise RuntimeError("the supervisor was not started")
        return self._scope
