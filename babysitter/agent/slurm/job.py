"""PURE: a replica's job, as sbatch is told of it and as squeue tells of it."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
OPTIONS: Mapping[str, tuple[str, str]] = {
    "partition": ("--partition", rf"{_WORD}(,{_WORD}){{0,15}}"),
    "account": ("--account", _WORD),
    "qos": ("--qos", _WORD),
    "reservation": ("--reservation", _WORD),
    "constraint": ("--constraint", r"[A-Za-z0-9(\[][A-Za-z0-9._&|()\[\]*,-]{0,199}"),
    "gres": ("--gres", r"[A-Za-z][A-Za-z0-9._:,-]{0,199}"),
    "cpus": ("--cpus-per-task", r"[1-9][0-9]{0,3}"),
    "memory_mb": ("--mem", r"[1-9][0-9]{0,8}"),
    "time_s": ("--time", r"[1-9][0-9]{0,8}"),
}
"""What a template, a deployment or the agent's settings may say of a job: sbatch's flag, and all that its value may be."""
QUEUED = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
)
OVER = frozenset(
    {
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
        "TIMEOUT",
    }
)  # fmt: skip
"""squeue(1), JOB STATE CODES. Every other state is one of a job that has its node."""
UNREACHED = re.compile(
    r"contact slurm|timed out|time out|connect(ion)? (failure|refused)|communication|temporarily|try again|unable to connect"
    r"|slurm_load_jobs|munge",
    re.IGNORECASE,
)
"""In what sbatch says when it could not ask, or had no answer; whatever else it says is a refusal, and final."""
WIDTHS: Mapping[str, int] = {
    "JobID": 20, "Name": 80, "State": 20, "exit_code": 12, "StartTime": 24, "EndTime": 24, "NodeList": 64, "SubmitTime": 24,
    "Partition": 64, "Reason": 160,
}  # fmt: skip
"""Columns of squeue. Its JSON changed with every second version (numbers became tables), and shows everybody's jobs."""
FORMAT = ",".join(f"{name}:{width}" for name, width in WIDTHS.items())
TURNS = f"JobID:{WIDTHS['JobID']},Partition:{WIDTHS['Partition']}"
MINUTE_S = 60


class BadOption(ValueError):
    """A value that no job may have; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Sight:
    """A job as squeue shows it. Moments are in UTC; `start` is expected while it is queued, None: Slurm does not say."""

    number: int
    name: str
    state: str
    code: int | None
    start: datetime | None
    end: datetime | None
    node: str
    submitted: datetime | None
    partition: str
    reason: str

    @property
    def is_over(self) -> bool:
        """It has ended, however."""
        return self.state in OVER

    @property
    def is_queued(self) -> bool:
        """It has no node yet."""
        return self.state in QUEUED

    @property
    def ran_s(self) -> float:
        """For how long it had a node. One that somebody cancelled counts as if it had not: to start it again is no cure."""
        if self.state == "CANCELLED" or self.start is None or self.end is None:
            return 0.0
        return (self.end - self.start).total_seconds()

    @property
    def words(self) -> str:
        """Slurm's own."""
        why = f" ({self.reason})" if self.reason not in ("", "None") else ""
        where = f" on {self.node}" if self.node else ""
        return f"job {self.number}{where}: {self.state}{why}"


def name_of(root_id: str, replica_id: str) -> str:
    """The job's name: of this replica of this root alone, and the same for each of its jobs, so that it is found again."""
    return f"{prefix_of(root_id)}{replica_id}"


def prefix_of(root_id: str) -> str:
    """What the names of all jobs of a root begin with."""
    return f"isvc-{root_id[:12]}-"


def checked(options: Mapping[str, object]) -> dict[str, str]:
    """The options of a job, each of which is one argument.

    Raises:
        BadOption: One is unknown, or has a value that it may not have.
    """
    found = {}
    for name, value in options.items():
        if name not in OPTIONS:
            raise BadOption(f"slurm.{name}: is unknown; there are: {', '.join(OPTIONS)}")
        text = str(value)
        if isinstance(value, bool) or not isinstance(value, str | int) or not re.fullmatch(OPTIONS[name][1], text):
            raise BadOption(f"slurm.{name}: {text[:80]!r} must match {OPTIONS[name][1]}")
        found[name] = text
    return found


def arguments(options: Mapping[str, str], *, name: str, directory: Path, workdir: Path, notice_s: int) -> list[str]:
    """What sbatch is told, the script apart, which comes by its stdin.

    `singleton`: Slurm itself lets one job of a name run at a time, should two ever be submitted. Requeued is nothing: the
    agent submits anew, and counts. The job's environment is the node's, so that no secret of ours is in it.
    """
    return [
        "--parsable",
        f"--job-name={name}",
        "--comment=inference-svc",
        "--nodes=1",
        "--ntasks=1",
        "--no-requeue",
        "--dependency=singleton",
        "--export=NIL",
        "--open-mode=append",
        f"--signal=B:USR1@{notice_s}",
        f"--chdir={workdir}",
        f"--output={directory}/worker_stdout.log",
        f"--error={directory}/worker_stderr.log",
        *(f"{OPTIONS[option][0]}={_value(option, text)}" for option, text in options.items()),
    ]


def _value(option: str, text: str) -> str:
    return str(-(-int(text) // MINUTE_S)) if option == "time_s" else text


def notice_of(options: Mapping[str, str], notice_s: int) -> int:
    """Seconds before its end at which the job is warned: half of its time at most."""
    limit_s = int(options.get("time_s", 0))
    return min(notice_s, limit_s // 2) if limit_s else notice_s


def script(command: Sequence[str], env: Mapping[str, str]) -> str:
    """The batch script. Nothing in it comes from the network."""
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in env.items())
    return f"#!/bin/sh\n{variables} exec {shlex.join(command)}\n"


def number_in(answer: str) -> int | None:
    """The id that `sbatch --parsable` printed (`7` or `7;cluster`); None for anything else."""
    word = answer.strip().partition(";")[0]
    return int(word) if word.isascii() and word.isdigit() else None


def read(text: str, prefix: str) -> list[Sight]:
    """The jobs in an answer of squeue whose names begin with `prefix`."""
    found = []
    for line in text.splitlines():
        cells, at = {}, 0
        for column, width in WIDTHS.items():
            cells[column], at = line[at : at + width].strip(), at + width
        if cells["Name"].startswith(prefix) and cells["JobID"].isdigit():
            found.append(
                Sight(
                    number=int(cells["JobID"]),
                    name=cells["Name"],
                    state=cells["State"],
                    code=_code(cells["exit_code"]),
                    start=moment(cells["StartTime"]),
                    end=moment(cells["EndTime"]),
                    node=cells["NodeList"],
                    submitted=moment(cells["SubmitTime"]),
                    partition=cells["Partition"],
                    reason=cells["Reason"],
                )
            )
    return found


def _code(text: str) -> int | None:
    """An exit code, which is a wait status or, of newer versions, `CODE:SIGNAL`. A signal is negative."""
    if text.isdigit():
        status = int(text)
        return -(status & 127) if status & 127 else status >> 8
    code, _, number = text.partition(":")
    if code.isdigit() and number.isdigit():
        return -int(number) if int(number) else int(code)
    return None


def moment(text: str) -> datetime | None:
    """A time of Slurm's in UTC (its commands are run with TZ=UTC); None for `N/A` and the like."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        return None


def places(text: str) -> dict[int, tuple[int, int]]:
    """By job: its place among those that are queued for its partition, from 1, and how many those are.

    `text` lists all queued jobs, the first to start first.
    """
    lines = [line.split() for line in text.splitlines()]
    rows = [(words[0].partition("_")[0], words[1]) for words in lines if len(words) == 2]  # noqa: PLR2004 - id, partition
    totals: dict[str, int] = {}
    found: dict[int, tuple[int, str]] = {}
    for number, partition in rows:
        totals[partition] = totals.get(partition, 0) + 1
        if number.isdigit():
            found.setdefault(int(number), (totals[partition], partition))
    return {number: (place, totals[partition]) for number, (place, partition) in found.items()}


def queue_words(sight: Sight, place: tuple[int, int] | None) -> str:
    """What is told of a job that waits."""
    expected = (
        f"Slurm expects to start it at {sight.start:%Y-%m-%dT%H:%M:%SZ}" if sight.start else "no start is expected yet"
    )
    where = f"position {place[0]} of {place[1]} in partition {sight.partition}, " if place else ""
    return f"job {sight.number}: {where}{expected} ({sight.reason or sight.state})"


def choose(sights: Iterable[Sight], number: int | None) -> Sight | None:
    """Which of the jobs of one name is the replica's: the one that is known, else the one that lives, else none.

    Of several that live, the one with a node, else the oldest.
    """
    jobs = sorted(sights, key=lambda job: (job.is_queued, job.number))
    for job in jobs:
        if job.number == number:
            return job
    return None if number is not None else next((job for job in jobs if not job.is_over), None)
