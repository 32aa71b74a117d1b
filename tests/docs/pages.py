"""What stands in fences on the pages of docs/, and what the comment above a fence says about it."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
TUTORIAL = ROOT / "docs" / "tutorial.md"
GUIDES = ("one-node", "security", "several-nodes", "tls", "upgrading", "watching")
"""Pages of docs/guides whose commands are run, all but the ones that say why not."""
_FENCE = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<kind>[a-z]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fence. `note` is the comment above it: `not run: REASON`, `only looks: REASON`, `file: NAME` or nothing."""

    page: Path
    line: int
    kind: str
    text: str
    note: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        return not self.note.startswith("not run: ")

    @property
    def must_succeed(self) -> bool:
        return not self.note.startswith("only looks: ")


def blocks(page: Path, *kinds: str) -> list[Block]:
    """The fences of a page, in order; of these kinds, or all."""
    text = page.read_text()
    found = [
        Block(page, text.count("\n", 0, match.start()) + 1, match["kind"], match["text"], match["note"] or "")
        for match in _FENCE.finditer(text)
    ]
    return [block for block in found if not kinds or block.kind in kinds]


def page(name: str) -> Path:
    return ROOT / "docs" / name
