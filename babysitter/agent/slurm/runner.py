"""The runner whose babysitters are jobs of Slurm: submits them, follows them, ends those that nobody wants.

A job is known by its id, and by its name, which is the replica's. When an sbatch was not answered, by anybody's death, the
queue is looked at until it tells. Of two jobs of one name Slurm lets one run (`singleton`), and we cancel the other.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import msgspec
import structlog
from msgspec.structs import replace

from babysitter.agent import picture
from babysitter.agent.launch_spec import LaunchSpec
from babysitter.agent.model import Desired, ReplicaRecord
from babysitter.agent.runner import Babysitter, Refused
from babysitter.agent.settings import AgentSettings
from babysitter.agent.slurm import job as jobs
from babysitter.agent.slurm.commands import SlurmAway, SlurmCommands
from babysitter.agent.slurm.job import Sight
from babysitter.agent.slurm.place import ORDER, WHERE, Order, Where, read_where
from babysitter.memory import SavedReplica
from common import own_python
from common.atomic_file import write_atomic
from common.clock import Clock, iso
from common.exits import ConfigurationError
from common.names import bind_address
from common.wire.address import url
from common.wire.replica import Stage
from common.wire.words import ReplicaStatus, StageState

log = structlog.get_logger(__name__)
SETTLE_S = 10.0
"""A job whose sbatch gave no answer is not there when queues of so long after do not show it."""
MOST_FAILURES = 5
WITHDRAW_S = 2.0
QUEUED = "queued"
NODE_MODULE = "babysitter.agent.slurm.node"


class SlurmJob:
    """The job of one replica. Its runner tells it what squeue shows.

    Args:
        commands: To end it.
        name: Its name.
        directory: The replica's.
        number: Its id; 0: not known yet.
    """

    def __init__(self, commands: SlurmCommands, name: str, directory: Path, number: int) -> None:
        self.name = name
        self.number = number
        self.sight: Sight | None = None
        self.place: tuple[int, int] | None = None
        self.submitting = False
        self.known_at = time.monotonic()
        """When its number was known, or began to be looked for."""
        self.told_at: datetime | None = None
        """When what is shown of it changed last."""
        self.verdict: str | None = None
        self._commands = commands
        self._directory = directory
        self._where: Where | None = None
        self._withdrawn_at = -WITHDRAW_S
        self._over = asyncio.Event()

    @property
    def is_alive(self) -> bool:
        """Until Slurm says that it is over."""
        return not self._over.is_set()

    @property
    def where(self) -> Where | None:
        """Where its babysitter listens, once it has said so."""
        if self._where is None and self.sight is not None and not self.sight.is_queued:
            found = read_where(self._directory)
            self._where = found if found is not None and found.job == self.number else None
        return self._where if self.is_alive else None

    @property
    def speaks(self) -> bool:
        """Its babysitter has written the replica's state."""
        if self.where is None:
            return False
        state = self._directory.parent / "state" / f"{self._directory.name}.json"
        with contextlib.suppress(OSError):
            return state.stat().st_mtime_ns >= (self._directory / WHERE).stat().st_mtime_ns
        return False

    @property
    def label(self) -> str:
        """Its id."""
        return f"job {self.number or '?'}"

    @property
    def ran_s(self) -> float | None:
        """With a node; None when there never was a job."""
        return None if self.sight is None else self.sight.ran_s

    async def ended(self) -> int | None:
        """Wait until Slurm says so."""
        await self._over.wait()
        return None if self.sight is None else self.sight.code

    async def withdraw(self) -> None:
        """Cancel it if it has not begun."""
        is_queued = self.sight is None or self.sight.is_queued
        if self.number and is_queued and self.is_alive and time.monotonic() - self._withdrawn_at >= WITHDRAW_S:
            self._withdrawn_at = time.monotonic()
            try:
                await self._commands.cancel(self.number, queued=True)
            except SlurmAway as error:
                log.warning("slurm.away", reason=str(error))

    async def terminate(self) -> None:
        """The same as `kill`: a job's babysitter does not outlive it."""
        await self.kill()

    async def kill(self) -> None:
        """Cancel it, again and again until Slurm has heard."""
        while self.is_alive:
            try:
                if self.number:
                    await self._commands.cancel(self.number)
                    return
            except SlurmAway as error:
                log.warning("slurm.away", reason=str(error))
            await asyncio.sleep(WITHDRAW_S)

    def take(self, sight: Sight | None, place: tuple[int, int] | None, looked_at: float, now: datetime) -> None:
        """What squeue shows of it, None for nothing; it was asked at `looked_at`."""
        if sight is not None:
            if (sight, place) != (self.sight, self.place):
                self.told_at = now
            self.number, self.sight, self.place = sight.number, sight, place
            if sight.is_over:
                self._finish(sight.words)
        elif not self.submitting and looked_at - self.known_at >= (0 if self.number else SETTLE_S):
            self._finish(f"{self.label}: Slurm knows it no more" if self.number else "no job was made")

    def _finish(self, verdict: str) -> None:
        self.verdict = verdict
        self._over.set()


class SlurmRunner:
    """All jobs of one root.

    Args:
        settings: The agent's.
        root: The replicas', on a file system that this machine and the cluster's nodes share.
        root_id: Names the root for ever.
        commands: Slurm's.
        clock: Time.
    """

    renews = False
    most_failures: int | None = MOST_FAILURES

    def __init__(
        self, settings: AgentSettings, root: Path, root_id: str, commands: SlurmCommands, clock: Clock
    ) -> None:
        if set(str(root)) & set("%\\"):
            raise ConfigurationError(f"local_workdir_root {root}: Slurm would read % and \\ in it: choose another")
        self._settings = settings
        self._root = root
        self._root_id = root_id
        self._commands = commands
        self._clock = clock
        self._jobs: dict[str, SlurmJob] = {}
        self._notes: dict[str, str] = {}
        """What was last heard of a replica that has no job, by its id."""
        self._trouble: str | None = None
        self._hurry = asyncio.Event()

    # What a controller asks.

    def adopt(self, records: list[ReplicaRecord]) -> Mapping[str, Babysitter]:
        """Every replica may have a job, until squeue says otherwise."""
        for record in records:
            if not record.over and record.fault is None:
                self._jobs[record.replica_id] = self._job(record, record.job_id)
        return dict(self._jobs)

    def find(self, record: ReplicaRecord) -> Babysitter | None:
        """Its job, while there is one."""
        job = self._jobs.get(record.replica_id)
        return job if job is not None and job.is_alive else None

    async def start(self, record: ReplicaRecord, directory: Path, launch_spec: LaunchSpec) -> Babysitter:
        """Submit its job.

        Raises:
            Refused: Slurm never takes it so.
            OSError: Its files cannot be written.
        """
        before = self.find(record)
        if before is not None:
            return before
        job = self._job(record, 0)
        notice_s = jobs.notice_of(record.job, self._settings.slurm.notice_s)
        order = Order(
            command=list(launch_spec.command),
            env=dict(launch_spec.env),
            host=bind_address(self._settings.servers_host),
            first_port=self._settings.first_port,
            last_port=self._settings.last_port,
            accelerators=len(record.accelerators),
            notice_s=notice_s,
        )
        await asyncio.to_thread(write_atomic, directory / ORDER, msgspec.json.encode(order))
        arguments = jobs.arguments(
            record.job, name=job.name, directory=directory, workdir=Path.cwd(), notice_s=notice_s
        )
        command = own_python.command(NODE_MODULE, str(directory))
        text = jobs.script(command, {own_python.PATH: own_python.SEARCH})
        job.submitting, self._jobs[record.replica_id] = True, job
        try:
            job.number = await self._commands.submit(arguments, text)
        except SlurmAway as error:
            self._notes[record.replica_id] = str(error)
            log.warning("slurm.unanswered", replica=record.replica_id, reason=str(error))
        except Refused as refusal:
            del self._jobs[record.replica_id]
            raise Refused(f"Slurm refuses its job: {refusal}") from refusal
        finally:
            job.submitting, job.known_at, job.told_at = False, time.monotonic(), self._clock.utcnow()
            self._hurry.set()
        return job

    def url(self, record: ReplicaRecord, directory: Path, launch_spec: LaunchSpec) -> str | None:
        """On the node that its job has."""
        del directory
        job = self._jobs.get(record.replica_id)
        where = job.where if job is not None else None
        return url(where.host, where.port + 1, scheme=launch_spec.scheme) if where is not None else None

    def seen(self, record: ReplicaRecord, directory: Path, state: SavedReplica) -> SavedReplica:
        """As its babysitter wrote once its job runs; before that, its place in the queue."""
        del directory
        job = self._jobs.get(record.replica_id)
        if record.over or record.fault is not None or record.desired is not Desired.RUNNING:
            return state
        where = job.where if job is not None else None
        cut_off = state.status is ReplicaStatus.STOPPED and state.memory.desired != Desired.STOPPED
        if job is not None and where is not None and job.speaks and not cut_off:
            return replace(state, base_url=url(where.host, state.port or where.port)) if state.base_url else state
        return picture.waiting(state, self._stage(record, job), at=iso(job.told_at) if job and job.told_at else None)

    def end_leftovers(self, directory: Path, mark: str | None) -> None:
        """Slurm ends all that belongs to a job."""

    # Following the queue.

    async def run(self) -> None:
        """Look at the queue, for ever."""
        while True:
            try:
                await self._look()
                self._trouble = None
            except SlurmAway as error:
                if self._trouble is None:
                    log.warning("slurm.away", reason=str(error))
                self._trouble = str(error)
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.slurm.poll_s):
                    await self._hurry.wait()

    async def _look(self) -> None:
        looked_at = time.monotonic()
        sights: dict[str, list[Sight]] = {}
        for sight in jobs.read(await self._commands.jobs(), jobs.prefix_of(self._root_id)):
            sights.setdefault(sight.name, []).append(sight)
        is_anyone_queued = any(sight.is_queued for found in sights.values() for sight in found)
        places = jobs.places(await self._commands.queue()) if is_anyone_queued else {}
        for replica_id, job in list(self._jobs.items()):
            chosen = jobs.choose(sights.get(job.name, ()), job.number or None)
            job.take(chosen, places.get(chosen.number) if chosen else None, looked_at, self._clock.utcnow())
            if not job.is_alive:
                log.info("slurm.job_over", replica=replica_id, reason=job.verdict)
                self._notes[replica_id] = job.verdict or ""
                if self._jobs.get(replica_id) is job:
                    del self._jobs[replica_id]
            elif chosen is not None and not chosen.is_queued:
                self._notes.pop(replica_id, None)
        await self._cancel_surplus([sight for found in sights.values() for sight in found])

    async def _cancel_surplus(self, sights: list[Sight]) -> None:
        """Jobs of this root that no replica has: of one that is gone, or one more of one that has its own."""
        owned = {job.number for job in self._jobs.values()}
        unsure = {job.name for job in self._jobs.values() if not job.number or job.submitting}
        for sight in sights:
            is_ending = sight.is_over or sight.state == "COMPLETING"
            if not is_ending and sight.number not in owned and sight.name not in unsure:
                log.warning("slurm.job_cancelled", job=sight.number, name=sight.name)
                await self._commands.cancel(sight.number)

    def _job(self, record: ReplicaRecord, number: int) -> SlurmJob:
        name = jobs.name_of(self._root_id, record.replica_id)
        return SlurmJob(self._commands, name, self._root / record.replica_id, number)

    def _stage(self, record: ReplicaRecord, job: SlurmJob | None) -> Stage:
        """What a replica without a babysitter waits for."""
        sight = job.sight if job is not None else None
        note = self._notes.get(record.replica_id)
        if self._trouble is not None:
            detail = f"Slurm does not answer: {self._trouble}"
        elif sight is None:
            detail = note or "its job is about to be submitted"
        elif sight.is_queued:
            detail = jobs.queue_words(sight, job.place if job else None) + (f"; before it: {note}" if note else "")
        else:
            detail = sight.words
        began_at = iso(sight.submitted) if sight is not None and sight.submitted is not None else record.created_at
        expected = sight.start if sight is not None and sight.is_queued else None
        return Stage(
            name=QUEUED,
            state=StageState.RUNNING,
            began_at=began_at,
            detail=detail,
            ends_at=iso(expected) if expected is not None else None,
        )
