"""Where the control plane's socket lies: in a folder of the process's own, that only its user can enter."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.exits import ConfigurationError

LIMIT_BYTES = 107
"""Of a socket's path (unix(7))."""


@contextmanager
def control_socket(data_dir: Path) -> Iterator[str]:
    """A path for it; below `data_dir` where nothing else can be written (a read-only container).

    Raises:
        ConfigurationError: Nothing can be written at all, or only where the path is too long.
    """
    with _private_folder(data_dir) as folder:
        path = str(Path(folder) / "control.sock")
        if len(os.fsencode(path)) > LIMIT_BYTES:
            raise ConfigurationError(f"router: {path} is too long for a socket; name a shorter folder with TMPDIR")
        yield path


def _private_folder(data_dir: Path) -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix="svc-router-")
    except OSError:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryDirectory(prefix="svc-router-", dir=data_dir.absolute())
        except OSError as error:
            raise ConfigurationError(
                f"router: neither a temporary folder (TMPDIR) nor data_dir {data_dir} can be written: {error.strerror}"
            ) from error
