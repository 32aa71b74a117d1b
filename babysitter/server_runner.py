"""The replica's server as a process: found again, started, waited for, drained, ended."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog
from msgspec.structs import replace

from babysitter import events as ev
from babysitter import log_keeper, ports, started_with
from babysitter.attempt import ServerAttempt, ServerCommand
from babysitter.attempt_files import AttemptLabels
from babysitter.external import External
from babysitter.home import Home
from babysitter.job_keeper import JobKeeper
from babysitter.lifecycle import ReplicaState
from babysitter.memory import Memory
from babysitter.server_log import ServerLog
from babysitter.spec import Spec
from common.tasks import TaskScope

log = structlog.get_logger(__name__)
HEARD_S = 1.0
"""Routers hear of a change within this time (docs/architecture.md: watchers within 50 ms, pollers of ours within a second)."""
DRAIN_POLL_S = 0.1


class ServerRunner:
    """Runs one server at a time.

    Args:
        spec: The replica.
        home: Where its attempts are.
        memory: The uuid of the attempt is kept there.
        server_log: The server's output.
        jobs: Its cluster jobs.
        rng: Jitter.
        state: Tells the replica's state now.
        tell: Takes events.
        persist: Writes the memory to disk.
        starting: Called when a server is about to be started.

    `attempt` is the current one, or the last; `command` that of the next; `is_adopted`: an earlier babysitter began the
    current one; `external` knows of a server that is another program's.
    """

    def __init__(
        self,
        spec: Spec,
        home: Home,
        memory: Memory,
        server_log: ServerLog,
        jobs: JobKeeper,
        *,
        rng: random.Random,
        state: Callable[[], ReplicaState],
        tell: Callable[[ev.Event], None],
        persist: Callable[[], Awaitable[None]],
        starting: Callable[[], None],
    ) -> None:
        self.attempt: ServerAttempt | None = None
        self.command = spec.command
        self.is_adopted = False
        self.external = External(spec)
        self._spec = spec
        self._home = home
        self._memory = memory
        self._log = server_log
        self._jobs = jobs
        self._rng = rng
        self._state = state
        self._tell = tell
        self._persist = persist
        self._starting = starting
        self._started_with: dict[str, str] = {}
        self._draining: asyncio.Task[None] | None = None

    @property
    def has_server(self) -> bool:
        """A server of an earlier babysitter is there, with a process of ours or without."""
        return self.attempt is not None and (self.attempt.server is not None or self.external.is_detached)

    @property
    def outdated(self) -> list[str]:
        """Settings that the running server was started with other values of."""
        return started_with.outdated(self._started_with, self._spec.server_settings)

    def reload(self, spec: Spec) -> None:
        """As `spec` says from now on; a new command is that of the next start."""
        self._spec = spec
        self.command = spec.command or self.command
        self.external.reload(spec)

    def use(self, command: ServerCommand) -> None:
        """Start the server by this command from now on."""
        self.command = command

    async def find(self) -> bool:
        """Look for the server of an earlier babysitter; True when it lives. What one that died has left is ended."""
        remembered = [self._memory.attempt] if self._memory.attempt else []
        for identifier in dict.fromkeys([*remembered, *self._home.live_attempts()]):  # a full disk may forget one (B9)
            attempt = self._home.attempt(identifier, grace_s=self._spec.grace_s)
            server = await attempt.find()
            if server is not None or self.attempt is None:
                self.attempt = attempt
            if server is not None:
                log.info("server.adopted", pid=server.pid, attempt=identifier)
                return True
        if self.attempt is not None:
            await self.attempt.sweep()
        return self.external.recall(self.attempt, self._memory.state)

    async def adopt(self, scope: TaskScope, attempt: ServerAttempt) -> None:
        """Look after the server that `find` found."""
        labels = attempt.labels
        self.is_adopted = True
        self._started_with = labels.settings
        self._memory.attempt = attempt.uuid
        if attempt.server is not None:
            self._log.adopt(attempt.server.pid, labels.files, labels.stdout_mark)
        if self._spec.deployer is not None:
            self.command = await asyncio.to_thread(self._spec.deployer.existing)
        self._jobs.follow(scope, attempt.uuid, labels.run_meta)
        if attempt.server is not None:
            scope.spawn(f"attempt.{attempt.uuid[:8]}", self._await_end(attempt))

    async def last_end(self) -> ev.Exited | None:
        """How a server ended while nobody looked; None when that says nothing of the start that is asked for now."""
        if self.attempt is None or not self.attempt.has_ended:
            return None
        ended = self.attempt.outcome()
        if started_with.begins_anew(self._spec, ended, self.attempt.labels.settings, self._memory.state):
            return None
        return await self._exited(ended)

    async def spawn(self, scope: TaskScope) -> None:
        """Start a new attempt; the intent is on disk before the process is (B3)."""
        if self.command is None:
            self._tell(ev.Undeployed())
            return
        addresses = self._spec.addresses
        taken = ports.complaint(addresses.bind, addresses.port, f"{self._spec.name} (its server)")
        if taken is not None:
            self._tell(await self._exited(ev.Exited(error=f"port_in_use: {taken}")))
            return
        self._memory.attempt = self._home.new_attempt()
        self._memory.attempts += 1
        self._memory.port = 0
        attempt = self._home.attempt(self._memory.attempt, grace_s=self._spec.grace_s)
        self.attempt = attempt
        self.is_adopted = self.external.is_detached = False
        await self._persist()
        scope.spawn(f"attempt.{attempt.uuid[:8]}", self._run(scope, attempt, self.command))

    def end(self, scope: TaskScope, *, force: bool) -> None:
        """End the server, whatever it is doing."""
        if self._draining is not None:
            self._draining.cancel()
        if self.external:
            scope.spawn("stop_command", self._end_external(force=force))
        elif self.attempt is not None:
            self.attempt.end(force=force)

    def drain(self, scope: TaskScope, port: int, is_at_rest: Callable[[], Awaitable[bool]]) -> None:
        """Wait until nobody is served at `port` any more, then tell; an earlier wait ends untold.

        `is_at_rest` asks the engine whether it has no request.
        """
        if self._draining is not None:
            self._draining.cancel()
        self._draining = scope.spawn("drain", self._drain(port, is_at_rest))

    async def leave(self) -> None:
        """Let go of the server without ending it."""
        if self.attempt is not None:
            await self.attempt.close()

    async def _drain(self, port: int, is_at_rest: Callable[[], Awaitable[bool]]) -> None:
        """The record says that the server is leaving: give the routers a moment to hear it, then wait for requests.

        Between two pieces of a stream a connection looks like an idle one, until it has been quiet for long. An engine that
        says that it has no request saves that time: then only what clients asked last, and what was just sent, is waited for.
        The machine's own timer ends a drain that takes too long.
        """
        await asyncio.sleep(min(HEARD_S, self._spec.policy.drain_s))
        while await asyncio.to_thread(ports.clients, port):
            if await is_at_rest() and not await asyncio.to_thread(ports.clients, port, at_rest=True):
                break
            await asyncio.sleep(DRAIN_POLL_S)
        self._tell(ev.Drained())

    async def _end_external(self, *, force: bool) -> None:
        """End a server that is another program's, then whatever of our command still runs."""
        await self.external.stop()
        if self.external.is_detached:
            self._tell(await self._exited(ev.Exited(code=0)))
        elif self.attempt is not None:
            self.attempt.end(force=force)

    def _begin(self, scope: TaskScope, attempt: ServerAttempt, command: ServerCommand) -> int:
        self._log.mark()
        self._home.forget_old_attempts(attempt.uuid)
        self._starting()
        mark = self._jobs.mark()
        self._started_with = self._spec.server_settings
        labels = AttemptLabels(
            name=self._spec.name,
            instance_id=self._memory.instance_id,
            run_meta=mark,
            settings=self._started_with,
            stdout_mark=self._log.marks[self._log.stdout],
            files=self._log.file_marks(),
        )
        self._jobs.follow(scope, attempt.uuid, mark)
        return attempt.begin(command, labels)

    async def _run(self, scope: TaskScope, attempt: ServerAttempt, command: ServerCommand) -> None:
        """Start an attempt when the node has a slot for it, then wait for its end."""

        def is_wanted() -> bool:
            return self._state() is ReplicaState.STARTING

        broken = await self._spec.peers.up(is_wanted) if self._spec.peers else None
        if broken is not None:
            await asyncio.to_thread(attempt.remove)
            self._tell(await self._exited(ev.Exited(error=broken)))
            return
        async with self._spec.slots.held(is_wanted):
            if not is_wanted():
                self._tell(ev.NotSpawned("no longer wanted"))
                return
            try:
                ready = self._begin(scope, attempt, command)
            except OSError as error:
                await asyncio.to_thread(attempt.remove)
                self._tell(ev.NotSpawned(f"cannot start the server: {error}", self._rng.random()))
                return
            server = await attempt.started(ready)
        server = server or await attempt.started_late()
        if server is not None:
            self._tell(ev.Spawned(server.pid))
        await self._await_end(attempt)

    async def _await_end(self, attempt: ServerAttempt) -> None:
        ended = await attempt.ended()
        self._jobs.look()
        if self.external:
            if self.external.goes_on(ended, self._state()):
                return
            await self.external.stop()
        self._tell(await self._exited(ended))

    async def _exited(self, ended: ev.Exited) -> ev.Exited:
        """The event, with the end of the log and jitter."""
        await asyncio.to_thread(log_keeper.follow, self._log)
        tail = await asyncio.to_thread(self._log.tail, ev.LOG_TAIL_LIMIT_BYTES)
        return replace(ended, tail=tail, chance=self._rng.random())
