"""Hatchling's metadata hook: the README as a page that stands alone, and where the project is, which only its owner knows.

    SVC_PROJECT_URL=https://git.example/team/inference-svc/blob/v1.0 python -m hatchling build

On a package index a link into the source tree leads nowhere. With that address it leads there; without it the link is left
out, and the page names the file, which the source archive has.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")
PAGES = {"Documentation": "docs/README.md", "Changelog": "CHANGELOG.md", "Source": "README.md"}


def stand_alone(text: str, base: str) -> str:
    """`text` without links that lead nowhere; `base` is where the tree can be read, or empty."""

    def link(found: re.Match[str]) -> str:
        picture, words, path = found.groups()
        if base:
            return f"{picture}[{words}]({base}/{path})"
        if picture:
            return words
        return words if words.strip("`") == path else f"{words} ({path})"

    return LINK.sub(link, text)


class Metadata(MetadataHookInterface):
    """Fills in what pyproject.toml calls dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """README and addresses."""
        base = os.environ.get("SVC_PROJECT_URL", "").rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": stand_alone(text, base)}
        if base:
            metadata["urls"] = {name: f"{base}/{path}" for name, path in PAGES.items()}
