"""PURE. Tokens as a table and as CSV."""

import csv
import io
from collections.abc import Sequence

from msgspec import UNSET

from common.tokens import FIELDS
from common.wire.usage import UsageReport, UsageRow
from ctl.table import TextTable

NOBODY = "anonymous"
HEADINGS = ("REQUESTS", "PROMPT", "CACHED", "COMPLETION", "REASONING", "ESTIMATED")


def table(report: UsageReport, by: Sequence[str]) -> TextTable:
    """Its rows, and their sum where there are several."""
    rows = [(*names(row, by), *(f"{count:,}" for count in counts(row))) for row in report.rows]
    if len(rows) > 1 and by:
        rows.append(("total", *[""] * (len(by) - 1), *(f"{getattr(report.total, field):,}" for field in FIELDS)))
    return TextTable((*(name.upper() for name in by), *HEADINGS), rows, right=frozenset(HEADINGS))


def as_csv(report: UsageReport, by: Sequence[str]) -> str:
    """Its rows, with a line of names above. A name that a spreadsheet would take for a formula is quoted with `'`."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow((*by, *FIELDS))
    for row in report.rows:
        lines.writerow((*map(_no_formula, names(row, by)), *counts(row)))
    return out.getvalue()


def names(row: UsageRow, by: Sequence[str]) -> list[str]:
    """What the row is about."""
    told = {"at": row.at, "key": row.key or NOBODY, "model": row.model, "replica": row.replica}
    return ["" if told[name] is UNSET else str(told[name]) for name in by]


def counts(row: UsageRow) -> list[int]:
    """In the order of `FIELDS`."""
    return [
        row.requests,
        row.prompt_tokens,
        row.cached_tokens,
        row.completion_tokens,
        row.reasoning_tokens,
        row.estimated_tokens,
    ]


def _no_formula(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
