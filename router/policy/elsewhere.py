"""PURE. What the workers of one router tell each other, as the policies see it; `router/sharing.py` does it."""

from collections.abc import Iterable, Sequence
from typing import Protocol


class Elsewhere(Protocol):
    """What the other workers of this router have placed, by an endpoint's slot or tag; and where to tell them."""

    def add(self, slot: int, work_bytes: int, reading_bytes: int) -> None:
        """More (or less) of a slot's prompts is placed and not read."""

    def read_at(self, slot: int, now: float) -> None:
        """A slot read a prompt of ours."""

    def requests(self, slot: int) -> int:
        """Requests that the others have at a slot."""
        ...

    def work_bytes(self, slot: int) -> int:
        """Uncached bytes that the others placed at a slot and that are not read."""
        ...

    def reading_bytes(self, slot: int) -> int:
        """Bytes that the others placed at a slot and that are not read."""
        ...

    def last_read_s(self, slot: int) -> float:
        """When a slot last read a prompt of the others."""
        ...

    def placed(self, tag: int, blocks: Sequence[int]) -> None:
        """Tell the others of a placement."""

    def news(self) -> Iterable[tuple[int, Sequence[int]]]:
        """What the others have placed since the last call."""
        ...
