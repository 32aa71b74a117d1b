"""What `doctor` looks at on this machine: interpreter and packages, disk, limits, files with tokens, ports."""

import os
import resource
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from ctl.doctor.finding import Finding, fault, ok, skipped, warn
from ctl.problem import Problem
from ctl.views.words import size

DISTRIBUTION = "inference-svc"
LEAST_FILES = 4096
LEAST_FREE_BYTES, LITTLE_FREE_BYTES = 256 << 20, 2 << 30
LEAST_INODES = 1000


def packages() -> Iterator[Finding]:
    """The interpreter, and every package that the suite needs, by the floors of its own metadata."""
    python = ".".join(map(str, sys.version_info[:3]))
    try:
        needed = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield skipped("packages", f"Python {python}; run from a source tree, so there are no floors to check")
        return
    missing = []
    for text in needed:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{requirement.name} {version or 'is missing'} (needs {requirement.specifier})")
    if missing:
        yield fault("packages", ", ".join(missing), f"{sys.executable} -m pip install --upgrade {DISTRIBUTION}")
    else:
        yield ok("packages", f"Python {python}; every package is new enough")


def disk(folder: Path) -> Iterator[Finding]:
    """Room for logs and state, and the right to write them."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        yield fault("state", f"{place} cannot be written", "choose another place with --state-dir")
        return
    room = os.statvfs(place)
    free, share = room.f_bavail * room.f_frsize, room.f_bavail / max(room.f_blocks, 1)
    seen = f"{size(free)} free at {place} ({share:.0%})"
    if free < LEAST_FREE_BYTES:
        yield fault("disk", seen, "make room: logs are in STATE/logs, environments of replicas beside their folders")
    elif free < LITTLE_FREE_BYTES:
        yield warn("disk", seen, "make room soon")
    else:
        yield ok("disk", seen)
    if room.f_files and room.f_favail < LEAST_INODES:
        yield fault("disk", f"only {room.f_favail} more files fit at {place}", "remove files there")


def limits() -> Finding:
    """Open files: each request takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (resource.RLIM_INFINITY, -1) or soft >= LEAST_FILES:
        return ok("limits", f"{soft} open files")
    remedy = f"ulimit -n {min(hard, 65_536) if hard > 0 else 65_536} before 'svcctl up'"
    return warn("limits", f"only {soft} open files per process", remedy)


def secret(check: str, option: str, read: Callable[[], object], file: str | None) -> Finding:
    """A file with a token or a key."""
    if file is None:
        return skipped(check, f"none given ({option})")
    try:
        read()
    except Problem as problem:
        return fault(check, problem.message, problem.hint or "see the message")
    return ok(check, f"{file} can be read, and only by its owner")
