"""The last known table on disk, so that a router can start while every registry is down (docs/architecture.md)."""

from pathlib import Path

import msgspec
import structlog

from common.atomic_file import read_bounded, write_atomic
from common.wire.record import ServiceRecord

log = structlog.get_logger(__name__)
FILE_LIMIT_BYTES = 64 << 20


class _Saved(msgspec.Struct, frozen=True):
    schema: int
    services: list[ServiceRecord]


def save(path: Path, records: list[ServiceRecord]) -> None:
    """Write `records`; a disk that refuses is logged, since the router serves without it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, msgspec.json.encode(_Saved(1, records)))
    except OSError as error:
        log.warning("table.not_saved", path=str(path), reason=str(error))


def load(path: Path) -> list[ServiceRecord]:
    """The records of an earlier run; none when there are none or they cannot be read."""
    try:
        saved = msgspec.json.decode(read_bounded(path, limit_bytes=FILE_LIMIT_BYTES), type=_Saved, strict=False)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, msgspec.DecodeError) as error:
        log.warning("table.not_loaded", path=str(path), reason=str(error))
        return []
    return saved.services
