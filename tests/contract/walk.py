"""A guide of an older system, walked: each thing it tells its reader to use, what became of it, and what shows that."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What became of a thing."""

    SAME = "the same"
    RENAMED = "does the same under another name"
    NOT_NEEDED = "nothing to do any more"
    THEIRS = "belongs to the old code or to the machines, not to how it is used"


@dataclass(frozen=True, slots=True)
class Step:
    """One command, call, variable or file. `check` gets the walk's node; a thing that is not ours has none."""

    thing: str
    verdict: Verdict
    check: Callable[[Any], None] | None = None
    now: str = ""

    def __post_init__(self) -> None:
        """A promise has something that shows it; what is renamed says how."""
        assert (self.check is None) == (self.verdict in (Verdict.NOT_NEEDED, Verdict.THEIRS)), self.thing
        assert bool(self.now) == (self.verdict is not Verdict.SAME), self.thing
