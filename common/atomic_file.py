"""Files that another process reads: written beside, fsynced, renamed, the directory fsynced (docs/faults.md B4).

A reader sees the old content or the new, never a torn mixture; a crash or a full disk leaves the old file whole.
"""

import contextlib
import glob
import os
import secrets
import stat
from pathlib import Path


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` with `data`.

    Args:
        path: The file; its directory must exist.
        data: The whole new content.
        mode: Permission bits of the new file.

    Raises:
        OSError: The disk is full, read-only or gone. The old file is then untouched and no temporary is left.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _fsync_directory(path.parent)


def remove_leftovers(path: Path) -> list[Path]:
    """Delete temporaries that killed writers of `path` left beside it; returns what was removed.

    For its one writer: what another process is about to write would be deleted as well.
    """
    leftovers = [one for one in path.parent.glob(f".{glob.escape(path.name)}.tmp-*") if one.is_file()]
    for one in leftovers:
        one.unlink(missing_ok=True)
    return leftovers


def read_bounded(path: Path, *, limit_bytes: int) -> bytes:
    """Read a regular file of at most `limit_bytes`, never through a symbolic link.

    Raises:
        OSError: The file is missing, a link (ELOOP) or unreadable.
        ValueError: The file is no regular file, or larger than the limit.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path}: not a regular file")
        if status.st_size > limit_bytes:
            raise ValueError(f"{path}: {status.st_size} bytes, more than the {limit_bytes} allowed")
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise ValueError(f"{path}: grew past the {limit_bytes} bytes allowed while it was read")
    return data


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
