"""The contract of documents: small texts of the registry's own that outlive it, and leadership over them (docs/adr/0013).

Every store has `documents`. A document has a version that no later document of its key ever has again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Document:
    """One document as it stands."""

    value: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Fence:
    """Proof of leadership: `number` is another one each time that it is taken."""

    number: int


class Documents(Protocol):
    """Reads and writes documents; may be called by several tasks at once, between the store's `open` and `close`."""

    async def lead(self) -> Fence | None:
        """Keep leadership, or take it if nobody has it; None while another registry leads. To be called each second.

        Raises:
            StoreUnavailable: Nobody knows who leads; whoever led no longer may.
        """
        ...

    async def read(self, prefix: str) -> Mapping[str, Document]:
        """Every document whose key begins with `prefix`, as of one moment.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        ...

    async def write(self, key: str, value: bytes | None, *, version: int, fence: Fence | None = None) -> int:
        """Put a document, or remove it (None); returns its new version.

        `version` is the one that it replaces, 0 for one that is not there. With `fence`, only while that leads.

        Raises:
            DocumentConflict: It has another version.
            FenceLost: `fence` is no longer the leader's.
            StoreUnavailable: Nothing is known of the write.
            StoreFull: There is no room.
        """
        ...

    async def say(self, key: str, value: bytes) -> None:
        """Put a document that others may overwrite and that vanishes some seconds after this registry does.

        Raises:
            StoreUnavailable: It was not put.
            StoreFull: There is no room.
        """
        ...
