"""PURE. Tables as data: the same rows become a coloured table, aligned text, or nothing but JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.wire.words import ReplicaStatus

GOOD, BUSY, BAD, QUIET = "green", "yellow", "bold red", "dim"
_STYLES: dict[str, str] = {
    **dict.fromkeys((status.value for status in ReplicaStatus), BUSY),
    **dict.fromkeys(
        ("draining", "suspect", "warn", "loading", "unloading", "queued", "starting", "rolling", "leaving"), BUSY
    ),
    **dict.fromkeys(("ready", "running", "healthy", "active", "loaded", "yes", "ok", "fresh"), GOOD),
    **dict.fromkeys(
        ("failed", "unhealthy", "down", "no", "stale", "away", "no answer", "fault", "unschedulable", "failing"), BAD
    ),
    **dict.fromkeys(
        ("disabled", "expired", "stopped", "not running", "unknown", "-", "skipped", "unloaded", "cold", "asleep"),
        QUIET,
    ),
}


@dataclass(frozen=True, slots=True)
class TextTable:
    """Column names, and rows of as many texts. `right` names the columns of numbers, `states` those to colour."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    right: frozenset[str] = frozenset()
    states: frozenset[str] = field(default_factory=lambda: frozenset({"STATUS", "STATE", "HEALTHY", "HEALTH"}))


def style_of(word: str) -> str:
    """The colour of a state; none for a word that is no state."""
    return _STYLES.get(word.lower(), "")


def visible(text: str) -> str:
    """`text` without control characters: a name or a log line must not steer the operator's terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)


def one_line(text: str) -> str:
    """`text` in one line, for a cell."""
    return " ".join(visible(text).split())


def as_text(table: TextTable) -> str:
    """Aligned columns, two spaces apart, nothing cut: for pipes and files. An empty cell is `-`."""
    lines = [table.columns, *([one_line(cell) or "-" for cell in row] for row in table.rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(table.columns))]
    return "".join(
        "  ".join(
            cell.rjust(width) if name in table.right else cell.ljust(width)
            for cell, width, name in zip(line, widths, table.columns, strict=True)
        ).rstrip()
        + "\n"
        for line in lines
    )
