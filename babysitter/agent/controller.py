"""The control loop of one replica, and the one writer of its record.

It keeps a babysitter running while the replica is wanted, and ends everything that is left once it is not.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path

import aiohttp
import structlog

from babysitter.agent import asking, disk, picture, processes
from babysitter.agent.launch_spec import LaunchSpec
from babysitter.agent.model import Desired, ReplicaRecord
from babysitter.agent.patience import Patience
from babysitter.agent.runner import Babysitter, Refused, Runner
from babysitter.agent.store import ReplicaStore
from babysitter.memory import SavedReplica
from common.clock import Clock
from common.exits import Exit
from common.wire.create import RequestGlance
from common.wire.replica import ReplicaInfo, StopRequest
from common.wire.words import ReplicaStatus

log = structlog.get_logger(__name__)
BEGUN_WITHIN_S = 120.0
"""A member of a group that is reserved is told of the others within this time, or has failed."""
TELL_AGAIN_S = 0.2
STARTED_WITHIN_S = 15.0
POLL_S = 0.05
STOP_TRIES = 2
RENEWED_WITHIN_S = 20.0
DEPLOYING = frozenset({ReplicaStatus.PENDING, ReplicaStatus.CREATING})
"""A babysitter that is left until it has got so far: another one would begin the deployment anew."""


class ReplicaController:
    """Keeps one replica.

    Args:
        record: What is known of it; changed here only.
        request: Its create request.
        store: Its files.
        launch_spec: How its babysitter is started; a reload replaces it.
        session: For the babysitter's calls.
        clock: Time.
        starts: Bounds how many babysitters are started at the same time.
        runner: Where its babysitter runs.
        babysitter: One that an earlier agent started, or None.
        changed: Called after every change of the record.
        node: This node's name.
        retention_s: How long a deleted replica is still shown.
        rng: Jitter.
    """

    def __init__(
        self,
        record: ReplicaRecord,
        request: RequestGlance,
        store: ReplicaStore,
        launch_spec: LaunchSpec,
        *,
        session: aiohttp.ClientSession,
        clock: Clock,
        starts: asyncio.Semaphore,
        runner: Runner,
        babysitter: Babysitter | None,
        changed: Callable[[], None],
        node: str,
        retention_s: float,
        rng: random.Random,
    ) -> None:
        self.record = record
        self.request = request
        self._store = store
        self.launch_spec = launch_spec
        self._session = session
        self._clock = clock
        self._starts = starts
        self._runner = runner
        self._babysitter = babysitter
        self._changed = changed
        self._node = node
        self._retention_s = retention_s
        self._rng = rng
        self._renewing = False
        self._has_started = False
        self._wake = asyncio.Event()
        self._saving = asyncio.Lock()
        self.ended = asyncio.Event()
        """Set once the replica is over."""

    @property
    def replica_id(self) -> str:
        """The replica's id."""
        return self.record.replica_id

    @property
    def directory(self) -> Path:
        """The replica's directory."""
        return self._store.directory(self.replica_id)

    @property
    def has_babysitter(self) -> bool:
        """True while its babysitter runs, or will by itself."""
        return self._babysitter is not None and self._babysitter.is_alive

    @property
    def speaks(self) -> bool:
        """True while its babysitter reports to the registry itself."""
        return self._babysitter is not None and self.has_babysitter and self._babysitter.speaks

    def state(self) -> SavedReplica:
        """What its babysitter wrote last."""
        return self._store.state(self.replica_id)

    def info(self) -> ReplicaInfo:
        """The replica as it is shown: as its babysitter wrote last, unless the server it wrote of is gone."""
        state = self._runner.seen(self.record, self.directory, self.state())
        return picture.info(self.record, state, self.request, workdir=str(self.directory), node=self._node)

    async def want(self, desired: Desired, *, force: bool = False) -> None:
        """Ask for the replica to be stopped, or stopped and removed. `desired` never moves back up its list.

        It goes on when the disk cannot save it: the disk may be full of what is to be removed.
        """
        order = list(Desired)
        before = (self.record.desired, self.record.force)
        self.record.desired = max(self.record.desired, desired, key=order.index)
        self.record.force = self.record.force or force
        if before == (self.record.desired, self.record.force):
            return
        await self._save()
        self._wake.set()

    async def retry(self) -> bool:
        """Begin a failed replica again; False when it has not failed."""
        if self.record.fault is not None and self.record.desired is Desired.RUNNING:
            self.record.fault = None
            await self._save()
            self._wake.set()
            return True
        return await self._tell("/retry")

    @property
    def is_outdated(self) -> bool:
        """True while its babysitter runs with other settings than it would be started with now."""
        return (
            self._is_wanted()
            and self._runner.renews
            and self.has_babysitter
            and not self._store.has_settings(self.replica_id, self.launch_spec.settings)
            and self.state().status not in DEPLOYING
        )

    async def renew(self) -> bool:
        """Restart its babysitter with the settings that are in force now; the server goes on and is adopted.

        False when the new one does not start; other babysitters would not start with these settings either.
        """
        babysitter = self._babysitter
        if babysitter is None:
            return True
        log.info("babysitter.renewed", replica=self.replica_id, old=babysitter.label)
        self._renewing = True
        await babysitter.terminate()
        deadline = self._clock.monotonic() + RENEWED_WITHIN_S
        while self._is_wanted() and (self._babysitter is babysitter or not self._has_started):
            if self.record.fault is not None or self._clock.monotonic() > deadline:
                await babysitter.kill()
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def run(self) -> None:
        """Keep it until it is deleted and forgotten."""
        patience = Patience(self._runner.most_failures)
        while self._is_wanted():
            self._wake.clear()
            if self.record.fault is not None:
                await self._wake.wait()
                continue
            if self.record.is_waiting and not self.has_babysitter:
                await self._until_begun()
                continue
            if not self.has_babysitter and self._was_stopped():
                self.record.desired = Desired.STOPPED  # by a call of its babysitter, perhaps while no agent ran
                break
            began = self._clock.monotonic()
            code = await self._keep_babysitter()
            if not self._is_wanted():
                break
            if self._was_stopped():
                continue
            if self._renewing:
                self._renewing = False
                continue
            if code == Exit.CONFIG and not self._adopt():
                await self._give_up(f"its babysitter cannot start: {processes.last_complaint(self.directory)}")
                continue
            ended = self._babysitter
            ran_s = ended.ran_s if ended is not None and not self._runner.renews else self._clock.monotonic() - began
            if patience.is_over(ran_s):
                verdict = f"{ended.verdict}: {processes.last_complaint(self.directory)}" if ended else ""
                await self._give_up(f"{patience.most} ended one after the other; {verdict}")
                continue
            wait_s = patience.wait_s(self._rng.random())
            log.warning("babysitter.ended", replica=self.replica_id, code=code, again_in_s=round(wait_s, 1))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait_s)
        await self._finish()

    async def _until_begun(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), BEGUN_WITHIN_S)
            return
        await self._give_up(f"its group was not complete within {BEGUN_WITHIN_S:g} s")

    async def begin(self, files: Mapping[str, bytes]) -> None:
        """The group of one that was reserved is complete.

        Raises:
            OSError: The disk refuses what its babysitter needs.
        """
        await asyncio.to_thread(self._store.add, self.replica_id, files)
        self.record.begun = True
        await self._save()
        self._wake.set()

    async def _give_up(self, fault: str) -> None:
        """It has failed, and stays so until it is retried or deleted."""
        self.record.fault = fault
        log.error("replica.cannot_be_kept", replica=self.replica_id, reason=fault)
        await self._save()

    def _was_stopped(self) -> bool:
        """Its babysitter was told to stop it for good; one that ends with its node or its job stops its server as well."""
        state = self.state()
        return state.status is ReplicaStatus.STOPPED and (self._runner.renews or state.memory.desired == "stopped")

    def _is_wanted(self) -> bool:
        return self.record.desired is Desired.RUNNING

    async def _keep_babysitter(self) -> int | None:
        """Start a babysitter if none runs, and wait: its exit code once it has ended, None once `desired` changes."""
        try:
            babysitter = self._babysitter if self.has_babysitter else await self._start()
        except OSError as error:
            log.error("babysitter.not_started", replica=self.replica_id, reason=str(error))
            return None
        except Refused as refusal:
            await self._give_up(str(refusal))
            return None
        if babysitter is None:
            return None
        ended = asyncio.ensure_future(babysitter.ended())
        woken = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({ended, woken}, return_when=asyncio.FIRST_COMPLETED)
            return ended.result() if ended.done() else None
        finally:
            for task in (ended, woken):
                task.cancel()

    def _adopt(self) -> Babysitter | None:
        """The babysitter that runs already, whoever started it."""
        if not self.has_babysitter:
            self._babysitter = self._runner.find(self.record)
        return self._babysitter

    async def _start(self) -> Babysitter | None:
        """Start a babysitter when its turn has come; None when the replica is no longer wanted by then."""
        async with self._starts:
            if self._wake.is_set():
                return None
            self._has_started = False
            before = self._store.signature(self.replica_id)
            await asyncio.to_thread(self._store.write_settings, self.replica_id, self.launch_spec.settings)
            self._babysitter = await self._runner.start(self.record, self.directory, self.launch_spec)
            log.info("babysitter.started", replica=self.replica_id, babysitter=self._babysitter.label)
            if self._babysitter.number != self.record.job_id:
                self.record.job_id = self._babysitter.number
                await self._save()
            deadline = self._clock.monotonic() + STARTED_WITHIN_S
            while (  # noqa: ASYNC110 - another process writes the file, past the costly part of its start
                self._runner.renews
                and self._babysitter.is_alive
                and self._store.signature(self.replica_id) == before
                and self._clock.monotonic() < deadline
                and not self._wake.is_set()
            ):
                await asyncio.sleep(POLL_S)
            self._has_started = self._babysitter.is_alive
        return self._babysitter

    async def _finish(self) -> None:
        """End the server and the babysitter in whatever phase they are; then remove the files once that is desired."""
        if not self.record.over:
            await self._end()
            self.record.over = True
            await self._write_end()
            log.info("replica.over", replica=self.replica_id, desired=self.record.desired)
        self.ended.set()
        self._changed()
        while self.record.desired is not Desired.DELETED:
            self._wake.clear()
            await self._wake.wait()
        await disk.until_allowed(lambda: self._store.remove(self.record), self.replica_id)
        age_s = self._store.gone_s(self.replica_id, self._clock.utcnow().timestamp()) or 0.0
        await asyncio.sleep(max(0.0, self._retention_s - age_s))
        await disk.until_allowed(lambda: self._store.forget(self.replica_id), self.replica_id)

    async def _write_end(self) -> None:
        """Save that the replica is over, again and again until the disk takes it: else a later agent starts it again (B9).

        It is not waited for before a removal: the disk may be full of what is to be removed.
        """
        while True:
            closed, saved = await self._close_state(), await self._save()
            if (closed and saved) or self.record.desired is Desired.DELETED:
                return
            await asyncio.sleep(disk.RETRY_S)

    async def _close_state(self) -> bool:
        try:
            await asyncio.to_thread(self._store.close_state, self.replica_id)
        except OSError as error:
            log.error("replica.disk_refuses", replica=self.replica_id, reason=str(error))
            return False
        return True

    async def _end(self) -> None:
        """Have its babysitter end the server; without one that can, end everything that carries the replica's mark."""
        for _ in range(STOP_TRIES):
            babysitter = self._adopt()
            if babysitter is None:
                memory = self.state().memory
                has_begun = memory.attempts or memory.deploying  # there may be something left of it
                if not self._runner.renews or self.state().status is ReplicaStatus.STOPPED or not has_begun:
                    return
                self._wake.clear()
                try:
                    babysitter = await self._start()
                except OSError as error:
                    log.error("babysitter.not_started", replica=self.replica_id, reason=str(error))
            if babysitter is not None:
                await self._end_through(babysitter)
        if self.state().status is not ReplicaStatus.STOPPED:
            log.warning("replica.ended_by_force", replica=self.replica_id)
            await asyncio.to_thread(self._runner.end_leftovers, self.directory, self.state().memory.deploying)

    async def _end_through(self, babysitter: Babysitter) -> None:
        """Tell the babysitter to stop, as often as it takes to reach it, and wait for its end; at last kill it."""
        deadline = self._clock.monotonic() + self.launch_spec.stop_limit_s
        ended = asyncio.ensure_future(babysitter.ended())
        reached: bool | None = None
        try:
            while not ended.done():
                left_s = deadline - self._clock.monotonic()
                if left_s <= 0:
                    await babysitter.kill()
                    await ended
                    return
                await babysitter.withdraw()
                if reached is not self.record.force:
                    force = self.record.force
                    reached = force if await self._tell("/stop", StopRequest(force=force)) else None
                self._wake.clear()
                woken = asyncio.ensure_future(self._wake.wait())
                wait_s = left_s if reached is self.record.force else TELL_AGAIN_S
                await asyncio.wait({ended, woken}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
        finally:
            ended.cancel()

    async def _tell(self, path: str, body: StopRequest | None = None) -> bool:
        """One call of its babysitter; True for a success."""
        return (await self.ask(path, body))[0] < HTTPStatus.BAD_REQUEST

    async def ask(self, path: str, body: StopRequest | None = None) -> tuple[int, bytes]:
        """One call of its babysitter: status and body of its answer; 503 where nobody answers."""
        url = self._runner.url(self.record, self.directory, self.launch_spec)
        return await asking.ask(self._session, f"{url}{path}", self.launch_spec.headers, body)

    async def _save(self) -> bool:
        """Save the record, one writer at a time; False when the disk refuses, which is logged and stops nothing."""
        saved = True
        async with self._saving:
            try:
                if self.directory.exists():
                    await asyncio.to_thread(self._store.save, self.record)
            except OSError as error:
                log.error("replica.wish_not_saved", replica=self.replica_id, reason=str(error))
                saved = False
        self._changed()
        return saved
