"""PURE. What a worker has counted for whom since its last word to the master (docs/usage.md).

A request is counted once, at its end, whichever replicas were tried: with what the answer's usage tells; where it tells
nothing, with the pieces of its stream, which are marked as estimated.
"""

from common.tokens import OTHER, ROWS_MOST, Counts, FlatRow, Name
from router.policy.usage import UNTOLD, Usage


class Ledger:
    """Rows of one worker."""

    def __init__(self) -> None:
        self._rows: dict[Name, list[int]] = {}

    def note(self, key: str, model: str, replica: str, usage: Usage | None, pieces: int) -> None:
        """One request is over. `pieces` of its stream came; they count only where the usage does not tell the answer's tokens."""
        name = (key, model, replica)
        row = self._rows.get(name)
        if row is None:
            row = self._new_row(name)
        row[0] += 1
        written = UNTOLD
        if usage is not None:
            written = usage.written
            if usage.prompt > 0:
                row[1] += usage.prompt
            if usage.cached > 0:
                row[2] += usage.cached
            if usage.reasoning > 0:
                row[4] += usage.reasoning
        if written >= 0:
            row[3] += written
        elif pieces:
            row[3] += pieces
            row[5] += pieces

    def _new_row(self, name: Name) -> list[int]:
        if len(self._rows) >= ROWS_MOST:
            name = (OTHER, OTHER, OTHER)
        return self._rows.setdefault(name, [0, 0, 0, 0, 0, 0])

    def take(self) -> list[FlatRow]:
        """What was counted since the last call."""
        rows, self._rows = self._rows, {}
        return [(name[0], name[1], name[2], _counts(row)) for name, row in rows.items()]


def _counts(row: list[int]) -> Counts:
    return row[0], row[1], row[2], row[3], row[4], row[5]
