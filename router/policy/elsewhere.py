"""PURE. What others who place requests tell, as the policies see it: a router's workers (`router/sharing.py`) and other routers."""

from collections.abc import Iterable, Sequence
from typing import Protocol


class Elsewhere(Protocol):
    """What others have placed, by an endpoint's slot or tag; and where to tell them."""

    def add(self, slot: int, work_bytes: int, reading_bytes: int) -> None:
        """More (or less) of a slot's prompts is placed and not read."""

    def read_at(self, slot: int, now: float) -> None:
        """A slot read a prompt of ours."""

    def head_is(self, slot: int, at: float, work_bytes: int) -> None:
        """The earliest of our prompts that a slot has not read; `at` is 0 when there is none."""

    def head(self, slot: int) -> tuple[float, int]:
        """The earliest of the others' prompts that a slot has not read: when it was placed (`inf`: none), its uncached bytes."""
        ...

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
