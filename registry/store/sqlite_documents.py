"""Documents in the SQLite file of the records, by the same thread; the lock on that file is the leadership.

What somebody ordered must outlive a power cut, so a document's transaction is flushed, unlike a record's.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from registry.core.documents import Document, Fence
from registry.core.store import DocumentConflict

Result = TypeVar("Result")
_NEXT = "INSERT INTO counters VALUES ('document_version', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value"
_LAST = chr(0x10FFFF)
"""Greater than whatever follows a prefix in a key."""
_PUT = (
    "INSERT INTO documents VALUES (?, ?, ?)"
    " ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version"
)


class Use(Protocol):
    """`SqliteStore.use`."""

    def __call__(self, work: Callable[[sqlite3.Connection], Result], /) -> Awaitable[Result]:
        """Do `work` in the store's thread."""
        ...


class SqliteDocuments:
    """Documents of one registry.

    Args:
        use: Works with the database in the store's thread.
    """

    def __init__(self, use: Use) -> None:
        self._use = use

    async def lead(self) -> Fence | None:
        """Whoever has the file leads."""
        return Fence(1)

    async def read(self, prefix: str) -> Mapping[str, Document]:
        """Those under `prefix`."""
        return await self._use(lambda database: _read(database, prefix))

    async def write(self, key: str, value: bytes | None, *, version: int, fence: Fence | None = None) -> int:
        """Compare and set in one transaction."""
        del fence
        return await self._use(lambda database: _write(database, key, value, version))

    async def say(self, key: str, value: bytes) -> None:
        """Nobody else is here to read it."""


def _read(database: sqlite3.Connection, prefix: str) -> Mapping[str, Document]:
    rows = database.execute(
        "SELECT key, value, version FROM documents WHERE key >= ? AND key < ? ORDER BY key", (prefix, prefix + _LAST)
    )
    return {key: Document(bytes(value), version) for key, value, version in rows}


def _write(database: sqlite3.Connection, key: str, value: bytes | None, version: int) -> int:
    database.execute("PRAGMA synchronous=FULL")
    try:
        with database:
            database.execute("BEGIN IMMEDIATE")
            row = database.execute("SELECT version FROM documents WHERE key = ?", (key,)).fetchone()
            if (row[0] if row else 0) != version:
                raise DocumentConflict(key)
            (written,) = database.execute(_NEXT).fetchone()
            if value is None:
                database.execute("DELETE FROM documents WHERE key = ?", (key,))
            else:
                database.execute(_PUT, (key, value, written))
            return int(written)
    finally:
        database.execute("PRAGMA synchronous=NORMAL")
