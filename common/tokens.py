"""PURE. Tokens by key, model and replica: rows of counts that are added up, with a bound on how many rows there are."""

from collections.abc import Iterable
from typing import TypeAlias

Name: TypeAlias = tuple[str, str, str]
"""Key, model, replica; empty where there is none."""
Counts: TypeAlias = tuple[int, int, int, int, int, int]
"""In the order of `FIELDS`."""
Rows: TypeAlias = dict[Name, Counts]
FlatRow: TypeAlias = tuple[str, str, str, Counts]
"""As rows are written and sent."""
FIELDS = (
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "estimated_tokens",
)
ROWS_MOST = 4096
"""Of one hour; what has no room is counted under `OTHER`."""
OTHER = "(other)"
HOUR_S = 3600


def add(rows: Rows, name: Name, counts: Counts, most: int = ROWS_MOST) -> None:
    """Add `counts` to a row; to that of `OTHER` if it is new and there are `most` rows."""
    if name not in rows and len(rows) >= most:
        name = (OTHER, OTHER, OTHER)
    before = rows.get(name)
    if before is None:
        rows[name] = counts
    else:
        a, b, c, d, e, f = before
        rows[name] = (
            a + counts[0],
            b + counts[1],
            c + counts[2],
            d + counts[3],
            e + counts[4],
            f + counts[5],
        )


def add_all(rows: Rows, more: Iterable[FlatRow], most: int = ROWS_MOST) -> None:
    """Add rows as they were sent."""
    for key, model, replica, counts in more:
        add(rows, (key, model, replica), counts, most)


def flat(rows: Rows) -> list[FlatRow]:
    """As they are sent."""
    return [(*name, counts) for name, counts in rows.items()]
