"""The store that forgets: `memory://`. After a restart, clients are told to register again (docs/faults.md C1)."""

from collections.abc import Sequence

from registry.core.model import Change, Instance, Upsert
from registry.core.store import Loaded
from registry.store.local import LocalStore


class MemoryStore(LocalStore):
    """A dict; a new process starts empty."""

    def __init__(self) -> None:
        self._instances: dict[str, Instance] = {}
        self._floor = 0

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
