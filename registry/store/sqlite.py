"""The embedded store: one SQLite file in WAL mode, one thread, one registry at a time.

`synchronous=NORMAL`: a killed process loses nothing; a power cut may lose the last registrations, which the next
heartbeats bring back. Heartbeats are never written, so a busy registry leaves the disk alone.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from common import lock_file
from common.exits import ConfigurationError
from registry.core.model import Change, Instance, Upsert
from registry.core.store import Loaded, StoreFull, StoreUnavailable
from registry.store.codec import decode, encode
from registry.store.local import LocalStore
from registry.store.sqlite_documents import SqliteDocuments

log = structlog.get_logger(__name__)
Result = TypeVar("Result")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS instances (name TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (key TEXT PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID;
"""
_PUT = "INSERT INTO instances VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET record = excluded.record"
_RAISE_FLOOR = (
    "INSERT INTO counters VALUES ('generation_floor', ?)"
    " ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)"
)


class SqliteStore(LocalStore):
    """Records in the SQLite file at `path`; its directory is made when it is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="registry-store")
        self._database: sqlite3.Connection | None = None
        self._lock: int | None = None
        self.documents = SqliteDocuments(self.use)

    async def open(self) -> Loaded:
        """Lock the file, read every record; a damaged file is renamed and a new one begun (docs/faults.md C12)."""
        return await self._in_thread(self._open)

    async def write(self, changes: Sequence[Change]) -> Sequence[Change]:
        """Write `changes` in one transaction."""
        rows = [(change, encode(change.instance) if isinstance(change, Upsert) else None) for change in changes]
        await self.use(lambda database: _write(database, rows))
        return changes

    async def use(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do `work` in the store's thread.

        Raises:
            StoreUnavailable: SQLite does not.
            StoreFull: There is no room.
        """

        def in_thread() -> Result:
            if self._database is None:
                raise sqlite3.OperationalError("the store is closed")
            return work(self._database)

        try:
            return await self._in_thread(in_thread)
        except RuntimeError as error:  # the thread has ended
            raise StoreUnavailable(f"{self._path}: {error}") from error
        except sqlite3.OperationalError as error:
            if _code(error) == sqlite3.SQLITE_FULL:
                raise StoreFull(f"{self._path}: {error}") from error
            raise StoreUnavailable(f"{self._path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise StoreUnavailable(f"{self._path}: {error}") from error

    async def close(self) -> None:
        """Close the file and let another registry have it."""
        await self._in_thread(self._close)
        self._thread.shutdown()

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # In the thread.

    def _open(self) -> Loaded:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
            try:
                return self._load()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError) and _code(error) != sqlite3.SQLITE_CORRUPT:
                    raise
                self._set_aside(error)
                return self._load()
        except (OSError, sqlite3.OperationalError) as error:
            raise ConfigurationError(f"store {self._path}: {error}") from error

    def _take_lock(self) -> None:
        lock = self._path.with_name(self._path.name + ".lock")
        try:
            self._lock = lock_file.take(lock)
        except lock_file.Held as held:
            raise ConfigurationError(
                f"store {self._path}: another registry uses it{held.by}; give this one its own --data-dir"
            ) from held

    def _load(self) -> Loaded:
        self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._path.chmod(0o600)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        if (verdict := self._database.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
            raise sqlite3.DatabaseError(f"quick_check says {verdict}")
        self._database.executescript(_SCHEMA)
        instances: list[Instance] = []
        for name, record in self._database.execute("SELECT name, record FROM instances ORDER BY name"):
            try:
                instances.append(decode(record))
            except (msgspec.DecodeError, TypeError) as error:
                log.warning("store.record_unreadable", name=name, reason=str(error))
        row = self._database.execute("SELECT value FROM counters WHERE name = 'generation_floor'").fetchone()
        return Loaded(tuple(instances), int(row[0]) if row else 0)

    def _set_aside(self, error: sqlite3.Error) -> None:
        """Rename a damaged file and its companions out of the way."""
        if self._database is not None:
            self._database.close()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        for path in (self._path, *(self._path.with_name(self._path.name + end) for end in ("-wal", "-shm"))):
            if path.exists():
                path.rename(path.with_name(f"{path.name}.corrupt-{stamp}"))
        log.error("store.damaged", path=str(self._path), kept_as=f"*.corrupt-{stamp}", reason=str(error))

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _write(database: sqlite3.Connection, rows: Sequence[tuple[Change, bytes | None]]) -> None:
    with database:
        database.execute("BEGIN IMMEDIATE")
        for change, record in rows:
            if record is not None:
                database.execute(_PUT, (change.name, record))
            else:
                database.execute("DELETE FROM instances WHERE name = ?", (change.name,))
                database.execute(_RAISE_FLOOR, (change.instance.generation,))


def _code(error: sqlite3.Error) -> int | None:
    """SQLite's own error code; None for an error that the Python module made."""
    return getattr(error, "sqlite_errorcode", None)
