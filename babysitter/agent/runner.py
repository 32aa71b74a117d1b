"""Where babysitters run: as processes of this machine (here), or as jobs of a scheduler (`slurm/runner.py`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from babysitter import identity
from babysitter.agent import picture, processes
from babysitter.agent.launch_spec import LaunchSpec
from babysitter.agent.model import ReplicaRecord
from babysitter.memory import SavedReplica


class Refused(Exception):
    """The babysitter of a replica will never be started as it is asked for; the text says why, in the refuser's words."""


class Babysitter(Protocol):
    """One babysitter, started by us or found."""

    @property
    def is_alive(self) -> bool:
        """Whether it runs, or will by itself."""

    @property
    def speaks(self) -> bool:
        """Whether it reports to the registry itself."""

    @property
    def label(self) -> str:
        """What it is, for logs."""

    @property
    def number(self) -> int:
        """The id that finds it again; 0 where nothing has to be remembered."""

    @property
    def ran_s(self) -> float | None:
        """For how long it ran, once it has ended; None: as long as it was waited for."""

    @property
    def verdict(self) -> str | None:
        """Why it ended, in the words of what ran it."""

    async def ended(self) -> int | None:
        """Wait for its end; its exit code (negative: a signal), None where it is not known."""

    async def withdraw(self) -> None:
        """End one that does not run yet."""

    async def terminate(self) -> None:
        """Have it end; its server outlives it where babysitters can be renewed."""

    async def kill(self) -> None:
        """End it by force."""


class Runner(Protocol):
    """Starts babysitters and finds them again."""

    @property
    def renews(self) -> bool:
        """Whether one runs from the moment of its start, and may be started again beside its server."""

    @property
    def most_failures(self) -> int | None:
        """How many in a row may end at once before the replica counts as failed; None: any number."""

    def adopt(self, records: list[ReplicaRecord]) -> Mapping[str, Babysitter]:
        """Those of earlier agents, by replica."""

    def find(self, record: ReplicaRecord) -> Babysitter | None:
        """The one that runs, whoever started it."""

    async def start(self, record: ReplicaRecord, directory: Path, launch_spec: LaunchSpec) -> Babysitter:
        """Start one.

        Raises:
            OSError: Not now.
            Refused: Never.
        """

    def url(self, record: ReplicaRecord, directory: Path, launch_spec: LaunchSpec) -> str | None:
        """Where the babysitter answers us; None while it is not known."""

    def seen(self, record: ReplicaRecord, directory: Path, state: SavedReplica) -> SavedReplica:
        """What its state file says, corrected by what is known of its processes."""

    def end_leftovers(self, directory: Path, mark: str | None) -> None:
        """Kill what a replica without a babysitter may have left. Blocks."""


class LocalRunner:
    """Babysitters are processes of this machine, detached.

    Args:
        root: The replicas'; babysitters are found again by it.
    """

    renews = True
    most_failures = None

    def __init__(self, root: Path) -> None:
        self._root = root

    def adopt(self, records: list[ReplicaRecord]) -> Mapping[str, Babysitter]:
        """Quick: all of them by one look at /proc."""
        del records
        return {replica_id: found[0] for replica_id, found in processes.scan(self._root).items()}

    def find(self, record: ReplicaRecord) -> Babysitter | None:
        """By their command lines."""
        found = processes.scan(self._root).get(record.replica_id)
        return found[0] if found else None

    async def start(self, record: ReplicaRecord, directory: Path, launch_spec: LaunchSpec) -> Babysitter:
        """Start it detached.

        Raises:
            OSError: No process can be made.
        """
        return processes.start(launch_spec.command, directory, record.port, {**launch_spec.env, **record.env})

    def url(self, record: ReplicaRecord, directory: Path, launch_spec: LaunchSpec) -> str | None:
        """At the port beside the server's."""
        del directory
        return launch_spec.babysitter_url(record.port)

    def seen(self, record: ReplicaRecord, directory: Path, state: SavedReplica) -> SavedReplica:
        """A server that is gone is not shown as one that serves."""
        del record
        attempt = picture.claimed_attempt(state)
        if attempt is not None and not processes.server_lives(directory / "attempts", attempt):
            return picture.between_servers(state)
        return state

    def end_leftovers(self, directory: Path, mark: str | None) -> None:
        """Whatever carries the replica's marks."""
        processes.end_servers(directory / "attempts")
        if mark:
            identity.end_bearers(mark)
