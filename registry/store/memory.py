"""The store that forgets: `memory://`. After a restart, clients are told to register again (docs/faults.md C1)."""

from collections.abc import Mapping, Sequence

from registry.core.documents import Document, Fence
from registry.core.model import Change, Instance, Upsert
from registry.core.store import DocumentConflict, Loaded
from registry.store.local import LocalStore


class MemoryStore(LocalStore):
    """A dict; a new process starts empty."""

    def __init__(self) -> None:
        self._instances: dict[str, Instance] = {}
        self._floor = 0
        self.documents = MemoryDocuments()

    async def open(self) -> Loaded:
        """What this object remembers: nothing, in a new process."""
        return Loaded(tuple(self._instances.values()), self._floor)

    async def write(self, changes: Sequence[Change]) -> Sequence[Change]:
        """Remember `changes`."""
        for change in changes:
            if isinstance(change, Upsert):
                self._instances[change.name] = change.instance
            else:
                self._instances.pop(change.name, None)
                self._floor = max(self._floor, change.instance.generation)
        return changes

    async def close(self) -> None:
        """Nothing to let go of."""


class MemoryDocuments:
    """A dict as well; its one registry always leads."""

    def __init__(self) -> None:
        self._documents: dict[str, Document] = {}
        self._version = 0

    async def lead(self) -> Fence | None:
        """Nobody else is here."""
        return Fence(1)

    async def read(self, prefix: str) -> Mapping[str, Document]:
        """Those under `prefix`."""
        return {key: it for key, it in self._documents.items() if key.startswith(prefix)}

    async def write(self, key: str, value: bytes | None, *, version: int, fence: Fence | None = None) -> int:
        """Compare, then set."""
        del fence
        there = self._documents.get(key)
        if (there.version if there else 0) != version:
            raise DocumentConflict(key)
        self._version += 1
        if value is None:
            self._documents.pop(key, None)
        else:
            self._documents[key] = Document(value, self._version)
        return self._version

    async def say(self, key: str, value: bytes) -> None:
        """Nobody else is here to read it."""
