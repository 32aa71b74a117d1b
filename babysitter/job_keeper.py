"""The cluster jobs of the replica: followed while its server runs, cancelled once when it is gone."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from babysitter import jobs
from babysitter.job_states import states
from babysitter.run_meta import Jobs, Ledger
from babysitter.run_meta_tail import Mark, RunMetaTail, mark_of
from babysitter.spec import JobRules
from babysitter.template import fill
from common.clock import Clock, iso
from common.tasks import TaskScope
from common.wire.replica import CancelledJob

log = structlog.get_logger(__name__)
STATE_LIMIT_BYTES = 1 << 20


class JobKeeper:
    """Keeps the ledger true.

    Args:
        rules: Where jobs are told, how they are cancelled.
        ledger: What is known; it is written into.
        clock: Time.
        seen: Called when new ids appeared.
        persist: Writes the ledger to disk.
    """

    def __init__(
        self,
        rules: JobRules,
        ledger: Ledger,
        *,
        clock: Clock,
        seen: Callable[[], None],
        persist: Callable[[], Awaitable[None]],
    ) -> None:
        self._rules = rules
        self._ledger = ledger
        self._clock = clock
        self._seen = seen
        self._persist = persist
        self.states: dict[str, str] = {}
        self._tail: RunMetaTail | None = None
        self._following: asyncio.Task[Any] | None = None
        self._cancelling: asyncio.Task[Any] | None = None

    def mark(self) -> Mark | None:
        """The file as it is: before a server starts, an earlier run's; it changes whenever the server writes."""
        return mark_of(self._rules.run_meta) if self._rules.run_meta else None

    def follow(self, scope: TaskScope, attempt: str, stale: Mark | None) -> None:
        """Follow the file for this attempt, whose server did not write what `stale` (its mark then) stands for."""
        if self._following is not None:
            self._following.cancel()
        if self._rules.run_meta is None:
            return
        self._tail = RunMetaTail(self._rules.run_meta, stale, lambda listed: self._note(attempt, listed))
        self._following = scope.spawn(f"run_meta.{attempt[:8]}", self._tail.follow())

    def look(self) -> None:
        """Read what the server has written by now, without waiting for the next look."""
        if self._tail is not None:
            self._tail.look()

    def cancel_orphans(self, scope: TaskScope, alive: str | None) -> None:
        """Cancel the jobs of every attempt but `alive`, in the background."""
        if self._rules.cancel_command:
            self._cancelling = scope.spawn("cancel", self._cancel(self._cancelling, alive))

    async def settled(self) -> None:
        """Wait until nothing is being cancelled."""
        if self._cancelling is not None:
            await asyncio.wait([self._cancelling])

    async def watch_states(self) -> None:
        """Ask for the jobs' states now and then, time-boxed; a command that fails leaves the last ones."""
        rules = self._rules
        while True:
            await asyncio.sleep(rules.state_interval_s)
            names = [*self._ledger.all("compile"), *self._ledger.all("execute")]
            if not names:
                continue
            argv = fill(rules.state_command, {"namespace": rules.namespace})
            result = await jobs.run(argv, timeout_s=rules.state_timeout_s, limit_bytes=STATE_LIMIT_BYTES)
            if result.code != 0:
                log.warning("jobs.states_unknown", code=result.code, output=result.output[-200:])
                continue
            now = states(result.output, names)
            if now != self.states:
                self.states = now
                self._seen()

    def _note(self, attempt: str, listed: Jobs) -> None:
        if self._ledger.add(attempt, listed):
            log.info("jobs.seen", compile=listed.compile, execute=listed.execute)
            self._seen()

    async def _cancel(self, before: asyncio.Task[Any] | None, alive: str | None) -> None:
        """Once per id: that it was begun is on disk before the command runs, its result after."""
        if before is not None:
            await asyncio.wait([before])
        for name in self._ledger.orphans(alive):
            at = iso(self._clock.utcnow())
            self._ledger.cancelled[name] = CancelledJob(at=at, output="begun")
            await self._persist()
            argv = fill(self._rules.cancel_command, {"wsjob_id": name})
            result = await jobs.run(argv, timeout_s=self._rules.cancel_timeout_s)
            self._ledger.cancelled[name] = CancelledJob(at=at, code=result.code, output=result.output)
            log.info("job.cancelled", wsjob_id=name, code=result.code, output=result.output)
        await self._persist()
