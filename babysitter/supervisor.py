"""The shell around the machine: the one writer of a replica's state. Events come in by a queue, effects go out."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, assert_never

import aiohttp
import structlog

from babysitter import events as ev
from babysitter import identity, log_keeper, ports, started_with
from babysitter.attempt import ServerAttempt, ServerCommand
from babysitter.engine_health import EngineHealth
from babysitter.external import External
from babysitter.fitting import kept_models
from babysitter.home import Home
from babysitter.job_keeper import JobKeeper
from babysitter.lifecycle import ALIVE, Lifecycle, ReplicaState, wire_status
from babysitter.machine import step
from babysitter.memory import Memory
from babysitter.probe import ServerProbe, fetch_json
from babysitter.server_log import ServerLog
from babysitter.spec import DeployError, Spec
from babysitter.stages import Stage, put
from babysitter.view import View, report
from babysitter.watcher import ServerWatcher
from common.clock import Clock, iso
from common.tasks import TaskScope

log = structlog.get_logger(__name__)
HEARD_S = 1.0
"""Routers hear of a change within this time (docs/architecture.md: watchers within 50 ms, pollers of ours within a second)."""
DRAIN_POLL_S = 0.1
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

    `held_back` tells settings of the file that wait for a restart of the babysitter, and what is wrong with the file;
    `refusal` tells why a registry will not have a record of the replica.
    `changed` is called after every change that others should know, `moved` after every move from state to state;
    `finished` is set when the replica is stopped.
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
        self.changed: Callable[[], None] = lambda: None
        self.moved: Callable[[], None] = lambda: None
        self.refusal: Callable[[], str | None] = lambda: None
        self.finished = asyncio.Event()
        self.log = ServerLog(spec.logs.stdout, spec.logs.stderr)
        self.held_back: Callable[[], tuple[tuple[str, ...], str | None]] = lambda: ((), None)
        self._clock = clock
        self._rng = rng
        self._command = spec.command
        self._events: asyncio.Queue[ev.Event] = asyncio.Queue()
        self._replica = Lifecycle(
            since=clock.monotonic(), restarts=memory.restarts, spent=memory.spent, failures=memory.failures
        )
        self._attempt: ServerAttempt | None = None
        self._adopted = False
        self._external = External(spec)
        self._started_with: dict[str, str] = {}
        self._scope: TaskScope | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deploying: asyncio.Task[Any] | None = None
        self._draining: asyncio.Task[Any] | None = None
        self._updated_at = iso(clock.utcnow())
        self._restart_at: str | None = None
        self._writing = asyncio.Lock()
        self._jobs = JobKeeper(spec.jobs, memory.jobs, clock=clock, seen=self._jobs_seen, persist=self.persist)
        self._session: aiohttp.ClientSession = probe.session
        self._watcher = ServerWatcher(
            spec,
            probe,
            engine,
            self.log,
            state=lambda: self._replica.state,
            attempt=lambda: self._attempt,
            busy=self._jobs.fingerprint,
            tell=self.tell,
            models_seen=self._models_seen,
        )

    @property
    def state(self) -> ReplicaState:
        """Where the replica is."""
        return self._replica.state

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
        self._command = spec.command or self._command
        self._external.reload(self.spec)
        self._watcher.reload(self.spec, probe, engine)
        if self.state is ReplicaState.FAILED:
            self.tell(ev.Retry(deploy=self.spec.deployer is not None))
        self.changed()

    def doubt(self, reason: str) -> None:
        """Somebody got nothing from the server: have it prove itself now, whatever it says of itself."""
        log.warning("server.doubted", reason=reason)
        self._watcher.doubt()

    def view(self) -> View:
        """A picture of the replica now."""
        replica, memory, addresses = self._replica, self.memory, self.spec.addresses
        server = self._attempt.server if self._attempt is not None and replica.state in ALIVE else None
        waiting, refused = self.held_back()
        return View(
            name=self.spec.name,
            label=self.spec.label,
            host=addresses.record,
            local_host=addresses.local,
            endpoint_host=addresses.endpoint,
            port=self._watcher.port,
            own_port=addresses.own_port,
            state=replica.state,
            instance_id=memory.instance_id,
            incarnation=memory.incarnation,
            heartbeat_s=self.spec.heartbeat_s,
            created_at=memory.created_at or self._updated_at,
            updated_at=self._updated_at,
            status_since=str(memory.timeline[-1]["at"]) if memory.timeline else self._updated_at,
            ready_at=memory.ready_at,
            models=tuple(memory.models),
            metadata=self.spec.metadata,
            weight=self.spec.weight,
            restart_count=replica.restarts,
            replica_pid=server.pid if server is not None else None,
            workdir=str(self.spec.workdir),
            venv_path=self.spec.venv_path,
            error_message=replica.error,
            next_restart_at=self._restart_at,
            stalled=replica.stalled,
            late=replica.late,
            need_restart=tuple(sorted({*waiting, *self._outdated()})),
            config_refused=refused,
            persist_failed=self.home.state.failure,
            registration_error=self.refusal(),
            compile_wsjob=memory.jobs.all("compile"),
            execute_wsjob=memory.jobs.all("execute"),
            serves=server is not None or (self._external.is_detached and replica.state in ALIVE),
            settling=self._adopted and replica.state is ReplicaState.WAITING_FOR_READY and replica.error is None,
            extra={
                **self.spec.extra,
                **self._watcher.memory(),
                **self._watcher.load(),
                "wsjob_states": self._jobs.states,
                "stages": memory.stages,
                **self._diagnostics(),
            },
        )

    async def adopt(self) -> bool:
        """Look for the server of an earlier babysitter; True when it lives. What one that died has left is ended."""
        remembered = [self.memory.attempt] if self.memory.attempt else []
        for identifier in dict.fromkeys([*remembered, *self.home.live_attempts()]):  # a full disk may forget one (B9)
            attempt = self.home.attempt(identifier, grace_s=self.spec.grace_s)
            found = await attempt.find()
            if found is not None or self._attempt is None:
                self._attempt = attempt
            if found is not None:
                log.info("server.adopted", pid=found.pid, attempt=identifier)
                return True
        if self._attempt is not None:
            await self._attempt.sweep()
        return self._external.recall(self._attempt, self.memory.state)

    async def start(self, scope: TaskScope) -> None:
        """Begin to look after the replica, whatever state it was left in."""
        self._scope = scope
        self.log.mark()
        await self._end_old_deployment()
        attempt = self._attempt
        unfinished = self.is_stopping and attempt is not None and (attempt.server is not None or attempt.has_ended)
        if not unfinished:
            self.memory.desired = "running"
        if attempt is not None and (attempt.server is not None or self._external.is_detached):
            self._recall_port(attempt)
            self.memory.attempt = attempt.uuid
            self._adopted = True
            if self.spec.deployer is not None:
                self._command = await asyncio.to_thread(self.spec.deployer.existing)
            self._jobs.follow(scope, attempt.uuid, attempt.labels.get("run_meta"))
            self._tell_first(ev.Adopted(attempt.server.pid if attempt.server is not None else 0))
            if attempt.server is not None:
                scope.spawn(f"attempt.{attempt.uuid[:8]}", self._await_end(attempt))
        else:
            self.memory.models = []
            exited = attempt.outcome() if attempt is not None and attempt.has_ended else None
            labels = attempt.labels if attempt is not None else {}
            if exited is not None and not started_with.begins_anew(self.spec, exited, labels, self.memory.state):
                self._tell_first(await self._exited(exited))
            elif not unfinished:
                self._tell_first(ev.Begin(deploy=self.spec.deployer is not None))
        if unfinished:
            log.info("replica.stop_resumed")
            self.tell(ev.StopRequested("the stop that was asked of an earlier babysitter"))
        scope.spawn("events", self._serve_events(), service=True)
        scope.spawn("probes", self._watcher.run(), service=True)
        if self.spec.jobs.state_command:
            scope.spawn("job_states", self._jobs.watch_states(), service=True)
        scope.spawn("files", self._keep_files(), service=True)

    async def leave(self) -> None:
        """Let go of the server without ending it."""
        if self._timer is not None:
            self._timer.cancel()
        if self._attempt is not None:
            await self._attempt.close()
        self.log.close()

    async def persist(self) -> None:
        """Write the state file; a disk that refuses is told in reports and does not stop the supervision (B9)."""
        async with self._writing:
            memory, replica = self.memory, self._replica
            memory.restarts, memory.spent, memory.failures = replica.restarts, replica.spent, replica.failures
            memory.state = replica.state.value
            content = {**report(self.view()), "status": wire_status(replica.state), "memory": memory.to_json()}
            await asyncio.to_thread(self.home.state.save, content)

    def _outdated(self) -> Sequence[str]:
        """Settings that the running server was started with other values of."""
        alive = self._replica.state in ALIVE
        return started_with.outdated(self._started_with, self.spec.server_settings) if alive else ()

    def _recall_port(self, attempt: ServerAttempt) -> None:
        """Where the adopted server listens: its ready line may be old by now, or have been written while nobody looked."""
        if self.memory.port and attempt.uuid == self.memory.attempt:
            self._watcher.port = self.memory.port
            self._watcher.is_proven = True
        labels = attempt.labels
        self._started_with = started_with.recalled(labels)
        if attempt.server is not None:
            self.log.adopt(attempt.server.pid, labels)

    def _tell_first(self, found: ev.Event) -> None:
        """Tell how the replica was found, before what was asked meanwhile: a stop is then a stop of what is there (E2)."""
        asked = [self._events.get_nowait() for _ in range(self._events.qsize())]
        for event in (found, *asked):
            self.tell(event)

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
        if moved or any(getattr(self._replica, name) != getattr(before, name) for name in ("error", "stalled", "late")):
            self._updated_at = iso(self._clock.utcnow())
            await self.persist()
            self.changed()
        self._arm()
        for effect in effects:
            await self._carry_out(effect)

    def _tell_story(self, before: Lifecycle) -> None:
        """Log the move and add it to the timeline."""
        now, move, state = self._clock.utcnow(), self._replica.story[-1], self._replica.state
        self._restart_at = None
        if state is ReplicaState.BACKING_OFF and self._replica.wake_at is not None:
            self._restart_at = iso(now + timedelta(seconds=self._replica.wake_at - self._replica.since))
        if state is ReplicaState.READY:
            self.memory.ready_at = iso(now)
            self.memory.port = self._watcher.port
            if self.spec.diagnostics and self.memory.diagnostics is None:
                self._spawn_task("diagnostics", self._fetch_diagnostics())
        if state is ReplicaState.STOPPED:
            self.memory.attempt = None
        self._watcher.moved.set()
        entry = {"at": iso(now), "from": before.state.value, "to": state.value, "cause": move.cause}
        self.memory.remember({**entry, "lasted_s": round(move.lasted_s, 3)})
        log.info("replica.moved", before=before.state, after=state, cause=move.cause)
        self.moved()

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
                self._terminate(force=force)
            case ev.DrainRequests():
                self._draining = self._spawn_task("drain", self._drain())
            case ev.Deploy():
                await self._begin_deployment()
            case ev.AbortDeploy():
                if self._deploying is not None:
                    self._deploying.cancel()
            case ev.CancelJobs():
                alive = self.memory.attempt if self._replica.state in ALIVE else None
                self._jobs.cancel_orphans(self._open_scope(), alive)
            case ev.Finish():
                self._spawn_task("finish", self._finish())
            case _:
                assert_never(effect)

    def _terminate(self, *, force: bool) -> None:
        if self._draining is not None:
            self._draining.cancel()
        if self._external:
            self._spawn_task("stop_command", self._end_external(force=force))
        elif self._attempt is not None:
            self._attempt.end(force=force)

    async def _end_external(self, *, force: bool) -> None:
        """End a server that is another program's, then whatever of our command still runs."""
        await self._external.stop()
        if self._external.is_detached:
            self.tell(await self._exited(ev.Exited(code=0)))
        elif self._attempt is not None:
            self._attempt.end(force=force)

    async def _spawn(self) -> None:
        """Start a new attempt; the intent is on disk before the process is (B3)."""
        if self._command is None:
            self.tell(ev.Undeployed())
            return
        addresses = self.spec.addresses
        taken = ports.complaint(addresses.bind, addresses.port, f"{self.spec.name} (its server)")
        if taken is not None:
            self.tell(await self._exited(ev.Exited(error=f"port_in_use: {taken}")))
            return
        self.memory.attempt = self.home.new_attempt()
        self.memory.attempts += 1
        self.memory.port = 0
        attempt = self.home.attempt(self.memory.attempt, grace_s=self.spec.grace_s)
        self._attempt = attempt
        self._adopted = self._external.is_detached = False
        await self.persist()
        self._spawn_task(f"attempt.{attempt.uuid[:8]}", self._run(attempt, self._command))

    def _begin(self, attempt: ServerAttempt, command: ServerCommand) -> int:
        self.log.mark()
        self.home.forget_old_attempts(attempt.uuid)
        self._watcher.new_attempt()
        mark = self._jobs.mark()
        names = {"name": self.spec.name, "instance_id": self.memory.instance_id}
        self._started_with = self.spec.server_settings
        labels = {**names, "run_meta": mark, "settings": self._started_with, **self.log.labels()}
        self._jobs.follow(self._open_scope(), attempt.uuid, mark)
        return attempt.begin(command, labels)

    async def _run(self, attempt: ServerAttempt, command: ServerCommand) -> None:
        """Start an attempt when the node has a slot for it, then wait for its end."""

        def wanted() -> bool:
            return self._replica.state is ReplicaState.STARTING

        async with self.spec.slots.held(wanted):
            if not wanted():
                self.tell(ev.NotSpawned("no longer wanted"))
                return
            try:
                ready = self._begin(attempt, command)
            except OSError as error:
                await asyncio.to_thread(attempt.remove)
                self.tell(ev.NotSpawned(f"cannot start the server: {error}", self._rng.random()))
                return
            server = await attempt.started(ready)
        server = server or await attempt.started_late()
        if server is not None:
            self.tell(ev.Spawned(server.pid))
        await self._await_end(attempt)

    async def _await_end(self, attempt: ServerAttempt) -> None:
        outcome = await attempt.ended()
        self._jobs.look()
        if self._external:
            if self._external.goes_on(outcome, self._replica.state):
                return
            await self._external.stop()
        self.tell(await self._exited(outcome))

    async def _exited(self, outcome: ev.Exited) -> ev.Exited:
        await asyncio.to_thread(log_keeper.follow, self.log)
        tail = await asyncio.to_thread(self.log.tail, ev.LOG_TAIL_LIMIT_BYTES)
        return replace(outcome, tail=tail, chance=self._rng.random())

    async def _begin_deployment(self) -> None:
        self.memory.stages = []
        self.memory.deploying = self.spec.deploy_mark
        await self.persist()
        self._deploying = self._spawn_task("deploy", self._deploy())

    async def _deploy(self) -> None:
        """Make the environment; however that ends, the machine hears of it."""
        event: ev.Event = ev.DeployFailed("the deployment was cut")
        try:
            if self.spec.deployer is not None:
                self._command = await self.spec.deployer.deploy(self._on_stage)
            event = ev.Deployed()
        except DeployError as error:
            event = ev.DeployFailed(str(error))
        finally:
            self.memory.deploying = None
            self.tell(event)

    def _on_stage(self, stage: Stage) -> None:
        self.memory.stages = put(self.memory.stages, stage)
        self._spawn_task("persist", self.persist())
        self.changed()

    async def _end_old_deployment(self) -> None:
        """End the tools of a deployment that its babysitter did not live to see through (B16)."""
        if self.memory.deploying is not None:
            await asyncio.to_thread(identity.end_bearers, self.memory.deploying)
            self.memory.deploying = None

    async def _drain(self) -> None:
        """The record says that the server is leaving: give the routers a moment to hear it, then wait for requests.

        The machine's own timer ends a drain that takes too long.
        """
        await asyncio.sleep(min(HEARD_S, self.spec.policy.drain_s))
        while await asyncio.to_thread(ports.clients, self._watcher.port):  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(DRAIN_POLL_S)
        self.tell(ev.Drained())

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
        url = f"{self.view().base_url}/diagnostics"
        self.memory.diagnostics = await fetch_json(self._session, url, timeout_s=DIAGNOSTICS_TIMEOUT_S)
        await self.persist()

    def _diagnostics(self) -> dict[str, Any]:
        return {"diagnostics": self.memory.diagnostics} if self.spec.diagnostics else {}

    def _models_seen(self, models: list[dict[str, Any]]) -> None:
        if self.state is ReplicaState.WAITING_FOR_READY:
            self._jobs.look()  # who sees it ready is to see all of its jobs
        kept = kept_models(models, self.memory.models)
        if kept != self.memory.models:
            self.memory.models = kept
            if (
                self.state is not ReplicaState.WAITING_FOR_READY
            ):  # it is about to be ready, which will be told with this
                self.changed()

    def _jobs_seen(self) -> None:
        self.tell(ev.StartProgress())
        self._spawn_task("persist", self.persist())
        self.changed()

    def _open_scope(self) -> TaskScope:
        if self._scope is None:
            raise RuntimeError("the supervisor was not started")
        return self._scope

    def _spawn_task(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self._open_scope().spawn(name, work)


def new_memory(memory: Memory, *, instance_id: str, epoch_s: int, now: str) -> Memory:
    """The memory of a babysitter that begins: a replica keeps its name, each life has a higher incarnation (C6)."""
    memory.instance_id = memory.instance_id or instance_id
    memory.incarnation = max(memory.incarnation + 1, epoch_s)
    memory.created_at = memory.created_at or now
    return memory
