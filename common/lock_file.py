"""A file that one process at a time holds, for as long as it lives; it tells the holder's pid."""

import fcntl
import os
from pathlib import Path


class Held(Exception):
    """Another process holds the file. `by` says which, as " (pid 7)", or nothing when the file does not tell."""

    def __init__(self, by: str) -> None:
        super().__init__(by)
        self.by = by


def take(path: Path) -> int:
    """Hold `path` until the returned descriptor is closed.

    Raises:
        Held: Another process does.
        OSError: It cannot be made or opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise Held(f" (pid {holder})" if holder else "") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
