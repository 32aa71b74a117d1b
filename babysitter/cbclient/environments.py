"""Shared client environments: content-addressed, complete or not there, kept while a replica uses them (B16).

`{root}/environments/{key}` is one environment. It is built in `.new-{key}-{uuid}` beside it, marked `.complete` with
the hash of its lock, and renamed. A replica's `cbclient` is a link to it: these links are the count of its users, so
that no counter can be wrong.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from common import lock_file
from common.atomic_file import read_bounded, write_atomic

MARKER = ".complete"
LOCK = "lock.txt"
LIMIT_BYTES = 4 << 20


class Environments:
    """The environments under `root`."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "environments"

    def path(self, key: str) -> Path:
        """Where the environment of that key is, or will be."""
        return self.directory / key

    def is_complete(self, key: str) -> bool:
        """True when it was built whole: its marker names the hash of the lock that lies in it."""
        path = self.path(key)
        try:
            marker = json.loads(read_bounded(path / MARKER, limit_bytes=LIMIT_BYTES))
            lock = read_bounded(path / LOCK, limit_bytes=LIMIT_BYTES)
        except (OSError, ValueError):
            return False
        return isinstance(marker, dict) and marker.get("lock_sha256") == hashlib.sha256(lock).hexdigest()

    @contextlib.asynccontextmanager
    async def building(self, key: str) -> AsyncIterator[Path]:
        """The right to build the environment of `key`: waits for others, removes what the killed ones left.

        Gives the directory to build in, which is gone afterwards unless `finish` took it.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self.directory / f".new-{key}-{uuid.uuid4().hex}"
        descriptor = await lock_file.wait(self.directory / f".lock-{key}")
        try:
            for leftover in self.directory.glob(f".new-{key}-*"):
                await asyncio.to_thread(shutil.rmtree, leftover, ignore_errors=True)
            fresh.mkdir(mode=0o700)
            yield fresh
        finally:
            await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
            os.close(descriptor)

    def finish(self, key: str, fresh: Path, lock: bytes) -> Path:
        """Mark what was built in `fresh` as complete and put it in its place."""
        target = self.path(key)
        if target.exists():
            shutil.rmtree(target)
        relocate(fresh, target)
        write_atomic(fresh / LOCK, lock)
        marker = {"lock_sha256": hashlib.sha256(lock).hexdigest(), "key": key}
        write_atomic(fresh / MARKER, json.dumps(marker).encode())
        fresh.rename(target)
        return target

    def users(self, key: str) -> list[Path]:
        """The `cbclient` links that lead to it."""
        target = self.path(key).resolve()
        links = self.directory.parent.glob("*/cbclient")
        return [link for link in links if link.is_symlink() and link.resolve() == target]

    def collect(self) -> list[str]:
        """Remove environments that nobody uses and nobody builds; returns their keys."""
        removed = []
        for path in self.directory.glob("[0-9a-f]*"):
            with contextlib.suppress(lock_file.Held), lock_file.held(self.directory / f".lock-{path.name}"):
                if not self.users(path.name):
                    shutil.rmtree(path, ignore_errors=True)
                    removed.append(path.name)
        return removed


def link(workdir: Path, target: Path) -> Path:
    """Make the replica's `cbclient` a link to `target`, in one step, in place of what was there."""
    place = workdir / "cbclient"
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    beside = workdir / f".cbclient.tmp-{os.getpid()}"
    beside.unlink(missing_ok=True)
    beside.symlink_to(os.path.relpath(target, workdir))
    beside.replace(place)
    return place


def relocate(built: Path, target: Path) -> None:
    """Make the texts of an environment name the place where it will be: its scripts' first lines, its configuration."""
    before, after = os.fsencode(built), os.fsencode(target)
    for path in [built / "pyvenv.cfg", *(built / "bin").iterdir()]:
        if path.is_symlink() or not path.is_file():
            continue
        raw = path.read_bytes()
        if before in raw and b"\0" not in raw[:1024]:
            mode = path.stat().st_mode
            path.write_bytes(raw.replace(before, after))
            path.chmod(mode)
