"""The table of docs/engines.md, from the catalogue: python -m tests.engines.page writes it."""

from pathlib import Path

from tests.engines.catalogue import ENGINES
from tests.engines.checks import CHECKS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "engines.md"
BEGIN, END = "<!-- table -->\n", "<!-- /table -->"


def table() -> str:
    """A row for each check, a column for each engine."""
    engines = list(ENGINES.values())
    lines = [
        ["", *(engine.title for engine in engines)],
        ["---"] * (len(engines) + 1),
        ["version", *(engine.version for engine in engines)],
        ["example", *(f"[{engine.example}](../config/examples/{engine.example})" for engine in engines)],
    ]
    lines += [[name.replace("_", " "), *("-" if name in one.cannot else "yes" for one in engines)] for name in CHECKS]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page() -> str:
    """The page as it should be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page())
