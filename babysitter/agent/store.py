"""The replicas' files under one root: each replica is created and removed in one step (docs/contract.md 5).

`{root}/{id}/` holds `request.json`, `babysitter.json` (its settings), `agent.json` (what the agent remembers), and, where a
template makes its server, `backend.json`.
`{root}/state/{id}.json` is the babysitter's, but for the time before it first writes and after it has ended. What is
half made or half removed has a name that begins with a dot, and is cleared away at the next start.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import structlog
from msgspec.structs import asdict, replace

from babysitter.agent.model import RemovedReplica, ReplicaRecord, read_record
from babysitter.memory import SavedReplica, read_saved
from babysitter.state_file import LIMIT_BYTES, StateFile, decode
from common import lock_file
from common.atomic_file import read_bounded, write_atomic
from common.exits import ConfigurationError
from common.names import is_replica_id
from common.wire.base import JsonObject
from common.wire.create import RequestGlance
from common.wire.read import read_json_lenient, read_lenient
from common.wire.words import NOT_SERVING, DisplayStatus, ReplicaStatus

log = structlog.get_logger(__name__)
FILE_LIMIT_BYTES = 2 << 20
NEW, GONE = ".new-", ".gone-"
ENVIRONMENTS = "environments"
"""The babysitters' clients lie here (cbclient/environments.py); its twelve letters could be a replica's id."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
Signature = tuple[int, int, int]


class ReplicaStore:
    """The files of all replicas.

    Args:
        root: Where everything is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()  # babysitters are found again by this path, whatever the next agent is told
        self.state_dir = self.root / "state"
        self._lock: int | None = None
        self._seen: dict[str, tuple[Signature, SavedReplica]] = {}

    def acquire(self) -> None:
        """Make the root and take it for this agent alone (E9).

        Raises:
            ConfigurationError: Another agent has it, or it cannot be used.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.state_dir.mkdir(mode=0o700, exist_ok=True)
            self._lock = lock_file.take(self.root / "agent.lock")
        except OSError as error:
            raise ConfigurationError(f"local_workdir_root {self.root}: cannot be used: {error.strerror}") from error
        except lock_file.Held as held:
            raise ConfigurationError(
                f"local_workdir_root {self.root}: another agent{held.by} has it; stop that one or choose another root"
            ) from None

    def release(self) -> None:
        """Let another agent have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def directory(self, replica_id: str) -> Path:
        """`{root}/{id}`.

        Raises:
            ValueError: That is no id (E4).
        """
        if not is_replica_id(replica_id):
            raise ValueError(f"{replica_id!r} is no replica id")
        return self.root / replica_id

    def own_id(self) -> str:
        """The uuid of this root, made the first time."""
        path = self.root / "agent-id"
        try:
            return uuid.UUID(read_bounded(path, limit_bytes=64).decode().strip()).hex
        except (OSError, ValueError):
            made = uuid.uuid4().hex
            with contextlib.suppress(OSError):  # a full disk: then it is this life's alone
                write_atomic(path, f"{made}\n".encode())
            return made

    def records(self) -> Iterator[ReplicaRecord]:
        """Every replica that is whole or still shown; removes what was half made or half removed."""
        for entry in sorted(self.root.iterdir()):
            if entry.name.startswith((NEW, GONE)):
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name == ENVIRONMENTS:
                continue
            elif is_replica_id(entry.name) and entry.is_dir() and not entry.is_symlink() and _is_ours(entry):
                record = self._record(entry / "agent.json")
                if record is not None and record.replica_id == entry.name:
                    yield record
        self._clear_states()
        for path in sorted(self.state_dir.glob("*.gone.json")):
            record = self._record(path)
            if record is not None and not (self.root / record.replica_id).exists():
                yield record

    def create(
        self,
        record: ReplicaRecord,
        request: bytes,
        settings: bytes,
        first: SavedReplica,
        made: Mapping[str, bytes] | None = None,
    ) -> None:
        """Make a replica's directory: it is whole or not there (E3).

        Args:
            record: The replica.
            request: The content of `request.json`.
            settings: The content of `babysitter.json`.
            first: The state file's content until the babysitter writes it.
            made: What a template makes, by the file's name: `backend.json`, or what that is made of elsewhere.

        Raises:
            OSError: The disk refuses; nothing is left.
        """
        fresh = self.root / f"{NEW}{record.replica_id}"
        try:
            fresh.mkdir(mode=0o700)
            write_atomic(fresh / "request.json", request)
            write_atomic(fresh / "babysitter.json", settings)
            for name, content in (made or {}).items():
                write_atomic(fresh / name, content)
            for _ in range(2):  # the second makes the first its backup
                _save(StateFile(fresh / "agent.json"), record)
            _save(StateFile(self.state_path(record.replica_id)), first)
            fresh.rename(self.directory(record.replica_id))
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            StateFile(self.state_path(record.replica_id)).remove()
            raise

    def save(self, record: ReplicaRecord) -> None:
        """Remember a change of a replica's record.

        Raises:
            OSError: The disk refuses; the old content is whole.
        """
        _save(StateFile(self.directory(record.replica_id) / "agent.json"), record)

    def write_settings(self, replica_id: str, settings: bytes) -> None:
        """Write its babysitter's settings anew, for the next babysitter."""
        write_atomic(self.directory(replica_id) / "babysitter.json", settings)

    def add(self, replica_id: str, files: Mapping[str, bytes]) -> None:
        """Write more files into its directory.

        Raises:
            OSError: The disk refuses.
        """
        for name, content in files.items():
            write_atomic(self.directory(replica_id) / name, content)

    def has_settings(self, replica_id: str, settings: bytes) -> bool:
        """True when its babysitter was started with these settings, or its file cannot be read."""
        try:
            return (
                read_bounded(self.directory(replica_id) / "babysitter.json", limit_bytes=FILE_LIMIT_BYTES) == settings
            )
        except (OSError, ValueError):
            return True

    def request(self, replica_id: str) -> RequestGlance:
        """The create request, as far as it can be read."""
        try:
            raw = read_bounded(self.directory(replica_id) / "request.json", limit_bytes=FILE_LIMIT_BYTES)
            return read_json_lenient(RequestGlance, raw)
        except (OSError, ValueError, RecursionError):
            request = (_checked(self._gone(replica_id)) or {}).get("request")
            return read_lenient(RequestGlance, request if isinstance(request, dict) else {})

    def state_path(self, replica_id: str) -> Path:
        """`{root}/state/{id}.json`."""
        return self.state_dir / f"{replica_id}.json"

    def state(self, replica_id: str) -> SavedReplica:
        """What the babysitter wrote last, and before that `pending`. The file is read again only when it changed."""
        path = self.state_path(replica_id)
        signature = self.signature(replica_id)
        nothing = SavedReplica(replica_id=replica_id, status=ReplicaStatus.PENDING)
        if signature is None:
            return nothing
        seen = self._seen.get(replica_id)
        if seen is None or seen[0] != signature:
            content = _checked(path) or _checked(StateFile(path).backup)
            saved = read_saved({**content, "replica_id": replica_id}) if content else None
            seen = (signature, saved or (seen[1] if seen else nothing))
            self._seen[replica_id] = seen
        return seen[1]

    def signature(self, replica_id: str) -> Signature | None:
        """Differs whenever the state file was replaced; None while there is none."""
        try:
            status = self.state_path(replica_id).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def close_state(self, replica_id: str) -> None:
        """Let the state file say that the replica is stopped, once its babysitter writes no more.

        Raises:
            OSError: The disk refuses; the old content is whole.
        """
        self.state_path(replica_id).with_suffix(".pid").unlink(missing_ok=True)
        state = self.state(replica_id)
        if state.status is not ReplicaStatus.STOPPED:
            content = _checked(self.state_path(replica_id)) or {}
            stopped = replace(
                state,
                status=ReplicaStatus.STOPPED,
                display_status=DisplayStatus.FAILED,
                endpoint=NOT_SERVING,
                replica_pid=None,
            )
            _save(StateFile(self.state_path(replica_id), seq=int(content.get("seq", 0))), stopped)

    def remove(self, record: ReplicaRecord) -> None:
        """Remove the directory; the state file, the request and the record stay to be shown for a while."""
        directory = self.directory(record.replica_id)
        if not directory.exists():
            return
        removed = RemovedReplica(**asdict(record), request=self.request(record.replica_id))
        try:
            _save(StateFile(self._gone(record.replica_id)), removed)
        except OSError as error:  # a full disk: the directory goes all the more
            log.warning("replica.not_shown_any_more", replica=record.replica_id, reason=str(error))
        gone = self.root / f"{GONE}{record.replica_id}-{uuid.uuid4().hex[:8]}"
        directory.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def forget(self, replica_id: str) -> None:
        """Remove what was kept to be shown."""
        StateFile(self.state_path(replica_id)).remove()
        self.state_path(replica_id).with_suffix(".pid").unlink(missing_ok=True)
        StateFile(self._gone(replica_id)).remove()
        self._seen.pop(replica_id, None)

    def gone_s(self, replica_id: str, now_s: float) -> float | None:
        """How long ago it was removed, in seconds of wall time; None when it was not."""
        try:
            return max(0.0, now_s - self._gone(replica_id).stat().st_mtime)
        except OSError:
            return None

    def _clear_states(self) -> None:
        """Remove the states of replicas that were never whole, or are gone whole."""
        for path in self.state_dir.glob("????????????.json"):
            if not is_replica_id(path.stem):
                continue
            if not self.directory(path.stem).exists() and not self._gone(path.stem).exists():
                self.forget(path.stem)

    def _gone(self, replica_id: str) -> Path:
        return self.state_dir / f"{replica_id}.gone.json"

    def _record(self, path: Path) -> ReplicaRecord | None:
        record = read_record(_checked(path) or _checked(StateFile(path).backup))
        if record is None:
            log.error("replica.unreadable", file=str(path))
        return record


def _is_ours(path: Path) -> bool:
    """True for what nobody else put there, where others may write to the root."""
    return path.lstat().st_uid == os.geteuid()


def _save(file: StateFile, content: msgspec.Struct) -> None:
    """Write a checked file, and keep the version before it.

    Raises:
        OSError: The disk refuses.
    """
    if not file.save(msgspec.to_builtins(content)):
        raise OSError(errno.ENOSPC, file.failure)


def _checked(path: Path) -> JsonObject | None:
    """The content of a file that `_save` or a babysitter wrote; None when there is none, or it is damaged."""
    try:
        return decode(read_bounded(path, limit_bytes=LIMIT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
