"""A file that one process at a time holds, for as long as it lives; it tells the holder's pid."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.1


class Held(Exception):
    """Another process holds the file. `by` says which, as " (pid 7)", or nothing when the file does not tell."""

    def __init__(self, by: str) -> None:
        super().__init__(by)
        self.by = by


def take(path: Path) -> int:
    """Hold `path` until the returned descriptor is closed.

    Raises:
        Held: Another process does.
        OSError: It cannot be made, opened or locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise Held(f" (pid {holder})" if holder else "") from None
    except OSError:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold `path` for a block.

    Raises:
        Held: Another process does.
        OSError: As `take`.
    """
    descriptor = take(path)
    try:
        yield
    finally:
        os.close(descriptor)


async def wait(path: Path) -> int:
    """Hold `path` once it is free, as `take`; does not block the loop (a thread that blocks in flock cannot be cancelled).

    Raises:
        OSError: As `take`.
    """
    import asyncio  # noqa: PLC0415 - svcctl's help and TAB do without

    while True:
        try:
            return take(path)
        except Held:
            await asyncio.sleep(POLL_S)


def is_held(path: Path) -> bool:
    """True when another process holds the file; it is neither made nor written."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
