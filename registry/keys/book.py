"""The keys in the store: looked at twice a second, since another registry may change them; changed by comparing versions."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256

import msgspec
import structlog

from common.wire.keys import KeyRecord, RouterKeys
from registry.core.documents import Document, Documents
from registry.core.store import DocumentConflict, StoreError, StoreFull, StoreUnavailable

log = structlog.get_logger(__name__)
KEYS = "keys/"
LOOK_S = 0.5
TRIES = 8
MOST = 2000
Change = Callable[[KeyRecord | None], KeyRecord | None]
_decode = msgspec.json.Decoder(KeyRecord).decode
_encode = msgspec.json.Encoder().encode


class KeyBook:
    """All keys, as they were read last; `known` once they were.

    Args:
        documents: The store's.
    """

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self.known = False
        self.closed = False
        """The registry stops: nobody waits for a change any more."""
        self.all = RouterKeys(version="", keys=[])
        self.changed = asyncio.Event()
        """Set, and replaced, at each change."""
        self._versions: dict[str, int] = {}
        self._looking = asyncio.Lock()

    async def run(self) -> None:
        """Look, for ever; what was read stays while the store is away."""
        while True:
            with suppress(StoreError):  # the keeper says that it is away
                await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Read all keys.

        Raises:
            StoreUnavailable: They cannot be read now.
        """
        async with self._looking:  # else an older look could end after a newer one
            self._take(await self._documents.read(KEYS))

    def _take(self, documents: Mapping[str, Document]) -> None:
        versions = {key: document.version for key, document in documents.items()}
        if self.known and versions == self._versions:
            return
        records = [record for record in map(self._decoded, documents.items()) if record is not None]
        self._versions, self.known = versions, True
        version = sha256(_encode(records)).hexdigest()[:16]
        if version != self.all.version:
            self.all = RouterKeys(version=version, keys=records)
            self.wake()

    def wake(self) -> None:
        """Have everybody look who waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()

    def close(self) -> None:
        """The registry stops."""
        self.closed = True
        self.wake()

    def _decoded(self, item: tuple[str, Document]) -> KeyRecord | None:
        """A key; one that cannot be read lets nobody in, and is said."""
        try:
            return _decode(item[1].value)
        except msgspec.MsgspecError as error:
            log.error("key.unreadable", key=item[0].removeprefix(KEYS), reason=str(error))
            return None

    async def read(self) -> Mapping[str, KeyRecord]:
        """Every key now, by name.

        Raises:
            StoreUnavailable: They cannot be read now.
        """
        await self.look()
        return {key.name: key for key in self.all.keys}

    async def change(self, name: str, change: Change) -> KeyRecord | None:
        """Read, change and write one key, again while somebody else is quicker; returns what `change` made of it.

        What `change` raises, this raises. It is given None where there is no such key, and returns None to remove it.

        Raises:
            StoreUnavailable: Nothing is known of the write, or somebody else was always quicker.
            StoreFull: There is no room, or there are `MOST` keys.
        """
        for _ in range(TRIES):
            document = (await self._documents.read(KEYS + name)).get(KEYS + name)
            after = change(None if document is None else self._decoded((KEYS + name, document)))
            if document is None and after is not None and len(await self.read()) >= MOST:
                raise StoreFull(f"{MOST} keys, and there may be no more; revoke one")
            value = None if after is None else _encode(after)
            try:
                await self._documents.write(KEYS + name, value, version=document.version if document else 0)
            except DocumentConflict:
                continue
            await self.look()
            return after
        raise StoreUnavailable(f"key {name!r} is changed all the time; try again")
