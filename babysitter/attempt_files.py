"""The files of an attempt, through which a babysitter and its shim talk, and the next babysitter learns of both."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog
from msgspec import field

from babysitter.held_file import FileMark
from babysitter.identity import Identity
from babysitter.run_meta_tail import Mark
from common.atomic_file import read_bounded
from common.wire.base import Message
from common.wire.read import read_lenient

log = structlog.get_logger(__name__)
M = TypeVar("M", bound=msgspec.Struct)
FILE_LIMIT_BYTES = 1 << 20


class AttemptLabels(Message, frozen=True, kw_only=True):
    """What the next babysitter should know of an attempt; the shim keeps it in `server.json`.

    Args:
        name: The replica's.
        instance_id: The replica's.
        run_meta: run_meta.json as an earlier run left it.
        settings: A digest of each setting that the server was started with; none of an older babysitter's.
        stdout_mark: The size of the standard output's file when the server was started.
        files: Device and inode of the two output files.
    """

    name: str = ""
    instance_id: str = ""
    run_meta: Mark | None = None
    settings: dict[str, str] = field(default_factory=dict)
    stdout_mark: int | None = None
    files: list[FileMark | None] = field(default_factory=list)


class AttemptSpec(Message, frozen=True, kw_only=True):
    """`spec.json`: what the shim runs."""

    uuid: str
    argv: Sequence[str]
    env: dict[str, str]
    cwd: str
    stdout: str
    stderr: str
    grace_s: float
    detaches: bool
    labels: AttemptLabels


class AttemptEnd(Message, frozen=True, kw_only=True):
    """`exit.json`: how the attempt ended, as `Exited` has it. `detached`: a server without a process of ours goes on."""

    boot_id: str | None = None
    code: int | None = None
    signal: int | None = None
    error: str | None = None
    left: int = 0
    detached: bool = False


class AttemptServer(Message, frozen=True, kw_only=True):
    """`server.json`: who runs, besides its identity."""

    boot_id: str | None = None
    labels: Any = None


class AttemptMembers(Message, frozen=True, kw_only=True):
    """`members.json`: who else was seen to belong to it."""

    members: list[Identity] = field(default_factory=list)


def read_attempt_file(path: Path, kind: type[M]) -> M:
    """What a file tells; nothing, where it is missing or torn."""
    try:
        raw = read_bounded(path, limit_bytes=FILE_LIMIT_BYTES)
        members = json.loads(raw) if raw else {}
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError) as error:
        log.warning("attempt.file_unreadable", file=path.name, reason=str(error))
        return kind()
    return read_lenient(kind, members) if isinstance(members, dict) else kind()
