"""Long work as it goes: bars with the stage's name on a terminal, one line per change otherwise, nothing under --json."""

from __future__ import annotations  # types of what is imported late

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ctl.progress import ProgressBoard

if TYPE_CHECKING:
    from ctl.output import Output


@contextmanager
def board(out: Output) -> Iterator[ProgressBoard]:
    """A board while the work lasts; what it shows last stays on the screen."""
    if out.as_json or not out.errors.is_terminal:
        yield ProgressBoard(out)
        return
    from ctl.bars import Bars, progress_of  # noqa: PLC0415 - TAB waits for what the commands import

    with progress_of(out) as progress:
        yield Bars(out, progress)
