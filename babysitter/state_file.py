"""The file a replica is remembered in: flat JSON for an operator's `jq`, checked, never torn, never trusted blindly.

Besides its content it has `schema`, `seq` (rises with each write) and `crc32` (of the rest). The previous good version
stays beside it as `.bak`. A file that cannot be believed is moved to `*.corrupt-<time>`, not deleted (B4, B8, B9).
"""

import contextlib
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import structlog

from common.atomic_file import read_bounded, remove_leftovers, write_atomic
from common.wire.base import JsonObject

log = structlog.get_logger(__name__)
SCHEMA = 1
LIMIT_BYTES = 8 << 20


class Unbelievable(ValueError):
    """The file's content is not what we wrote."""


@dataclass(slots=True)
class StateFile:
    """The state file at `path` and its backup. `failure` is the reason of the last write that failed, or None."""

    path: Path
    seq: int = 0
    failure: str | None = None

    @property
    def backup(self) -> Path:
        """The previous good version."""
        return self.path.with_name(f"{self.path.name}.bak")

    def load(self, *, stamp: str) -> JsonObject:
        """The last good content, `{}` when there is none. A corrupt file is moved to `*.corrupt-{stamp}`."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (self.path, self.backup):
            remove_leftovers(path)
        for candidate in (self.path, self.backup):
            try:
                content = decode(read_bounded(candidate, limit_bytes=LIMIT_BYTES))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, RecursionError) as error:
                self._quarantine(candidate, stamp, error)
                continue
            self.seq = content["seq"]
            return content
        return {}

    def save(self, content: JsonObject) -> bool:
        """Write `content`; False (and `failure`) when the disk refuses. The old file is then intact."""
        self.seq += 1
        try:
            self._keep_backup()
            write_atomic(self.path, encode(content, self.seq))
        except OSError as error:
            reason = f"{self.path}: {error.strerror or error}"
            if reason != self.failure:
                log.error("state.persist_failed", reason=reason)
            self.failure = reason
            return False
        self.failure = None
        return True

    def remove(self) -> None:
        """Delete the file and its backup."""
        for path in (self.path, self.backup):
            path.unlink(missing_ok=True)

    def _keep_backup(self) -> None:
        beside = self.backup.with_name(f".{self.backup.name}.tmp-{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            beside.unlink(missing_ok=True)
            os.link(self.path, beside)
            beside.replace(self.backup)

    def _quarantine(self, path: Path, stamp: str, error: Exception) -> None:
        aside = path.with_name(f"{path.name}.corrupt-{stamp}")
        with contextlib.suppress(OSError):
            path.replace(aside)
        log.error("state.corrupt", file=str(path), moved_to=str(aside), reason=str(error))


def encode(content: JsonObject, seq: int) -> bytes:
    """The file's bytes."""
    body = {**content, "schema": SCHEMA, "seq": seq}
    return json.dumps({**body, "crc32": checksum(body)}, indent=1).encode() + b"\n"


def decode(raw: bytes) -> JsonObject:
    """The content of a file that `encode` made.

    Raises:
        ValueError: It is no such file, damaged, or of a schema that we do not know.
    """
    body = json.loads(raw.decode())
    if not isinstance(body, dict):
        raise Unbelievable(f"holds a {type(body).__name__}, not an object")
    crc32 = body.pop("crc32", None)
    if body.get("schema") != SCHEMA:
        raise Unbelievable(f"schema {body.get('schema')!r} is not ours")
    if crc32 != checksum(body) or not isinstance(body.get("seq"), int):
        raise Unbelievable("checksum does not match")
    return body


def checksum(body: JsonObject) -> int:
    """CRC-32 of the canonical JSON text."""
    return zlib.crc32(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
