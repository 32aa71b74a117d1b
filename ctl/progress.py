"""Long work as it goes, in lines: one for each change."""

from __future__ import annotations  # types of what is imported late

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctl.output import Output


class ProgressBoard:
    """One line for each change of what is waited for.

    Args:
        out: Where to.
    """

    def __init__(self, out: Output) -> None:
        self._out = out
        self._said: dict[str, str] = {}

    def show(self, name: str, stage: str, *, share: float | None = None, detail: str = "") -> None:
        """What `name` does now. `share` is 0.0 to 1.0; None when nobody knows how far it is."""
        del share
        if self._said.get(name) != stage:
            self._said[name] = stage
            self._out.note(f"{name}: {stage}" + (f": {detail}" if detail else ""))

    def end(self, name: str, stage: str, *, well: bool = True) -> None:
        """`name` is over."""
        del well
        if self._said.get(name) != stage:
            self._said[name] = stage
            self._out.note(f"{name}: {stage}")
