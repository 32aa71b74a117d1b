"""The deployments in the store: read whole, and changed one at a time by comparing versions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
import structlog

from registry.core.documents import Document, Documents, Fence
from registry.core.store import DocumentConflict, StoreUnavailable
from registry.deployments.board import Status
from registry.deployments.model import StoredDeployment
from registry.deployments.stored import decode, encode
from registry.deployments.timing import Starts

log = structlog.get_logger(__name__)
DEPLOYMENTS = "deployments/"
STARTS = "starts/"
STATUS = "status/"
BORN = "born"
TRIES = 8
_starts = msgspec.json.Decoder(Starts).decode
_status = msgspec.json.Decoder(Status).decode
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Shelf:
    """Documents as they were read last; `versions` are the store's. `whole`: every one could be read."""

    stored: dict[str, StoredDeployment] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    whole: bool = True


class Books:
    """Reads and writes the documents of deployments.

    Args:
        documents: The store's.
    """

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._starts_versions: dict[str, int] = {}
        self._read: dict[str, tuple[int, StoredDeployment | None]] = {}
        """What was read last, by key, with its version."""

    async def read(self) -> Shelf:
        """Every deployment; one that cannot be read is passed over, and said once for each version."""
        shelf, documents = Shelf(), await self._documents.read(DEPLOYMENTS)
        self._read = {key: self._decoded(key, document) for key, document in documents.items()}
        for key, (version, stored) in self._read.items():
            name = key.removeprefix(DEPLOYMENTS)
            shelf.versions[name] = version
            if stored is None:
                shelf.whole = False
            else:
                shelf.stored[name] = stored
        return shelf

    def _decoded(self, key: str, document: Document) -> tuple[int, StoredDeployment | None]:
        known = self._read.get(key)
        if known is not None and known[0] == document.version:
            return known
        try:
            return document.version, decode(document.value)
        except msgspec.MsgspecError as error:
            log.error("deployment.unreadable", key=key, reason=str(error))
            return document.version, None

    async def change(
        self,
        name: str,
        change: Callable[[StoredDeployment | None, Mapping[str, StoredDeployment]], StoredDeployment | None],
    ) -> StoredDeployment | None:
        """Read, change and write one deployment, again while somebody else is quicker; returns it as it stands then.

        `change` is given the deployment and all others; what it raises, this raises. It returns None to remove it, and the
        same object to leave it as it is.

        Raises:
            StoreUnavailable: Nothing is known of the write, or somebody else was always quicker.
            StoreFull: There is no room.
        """
        for _ in range(TRIES):
            shelf = await self.read()
            before = shelf.stored.get(name)
            after = change(before, shelf.stored)
            if after is before:
                return before
            try:
                await self.write(name, after, version=shelf.versions.get(name, 0))
            except DocumentConflict:
                continue
            return after
        raise StoreUnavailable(f"deployment {name!r} is changed all the time; try again")

    async def write(
        self, name: str, stored: StoredDeployment | None, *, version: int, fence: Fence | None = None
    ) -> int:
        """Write one deployment that was read at `version`."""
        value = None if stored is None else encode(stored)
        return await self._documents.write(DEPLOYMENTS + name, value, version=version, fence=fence)

    async def born_at(self, now: float, fence: Fence) -> float:
        """When this store first knew a deployment's registry."""
        there = (await self._documents.read(BORN)).get(BORN)
        if there is not None:
            return float(there.value)
        await self._documents.write(BORN, str(now).encode(), version=0, fence=fence)
        return now

    async def starts(self) -> dict[str, Starts]:
        """How long starts took, by template."""
        found: dict[str, Starts] = {}
        for key, document in (await self._documents.read(STARTS)).items():
            template = key.removeprefix(STARTS)
            self._starts_versions[template] = document.version
            try:
                found[template] = _starts(document.value)
            except msgspec.MsgspecError as error:
                log.error("deployment.unreadable", key=key, reason=str(error))
        return found

    async def remember_starts(self, template: str, starts: Starts, fence: Fence) -> None:
        """Write how long starts of one template took."""
        version = self._starts_versions.get(template, 0)
        written = await self._documents.write(STARTS + template, _encode(starts), version=version, fence=fence)
        self._starts_versions[template] = written

    async def statuses(self) -> dict[str, Status]:
        """What the registry that leads says of each deployment."""
        found = {}
        for key, document in (await self._documents.read(STATUS)).items():
            try:
                found[key.removeprefix(STATUS)] = _status(document.value)
            except msgspec.MsgspecError as error:
                log.debug("deployment.status_unreadable", key=key, reason=str(error))
        return found

    async def tell_status(self, name: str, status: Status) -> None:
        """Let the other registries know."""
        await self._documents.say(STATUS + name, _encode(status))
