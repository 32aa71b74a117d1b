"""Keeping the server's output files: followed wherever they go (W27), and cut by size, whatever the disk says (A18)."""

import structlog

from babysitter.server_log import ServerLog, rotate
from babysitter.spec import LogRules

log = structlog.get_logger(__name__)


def follow(files: ServerLog) -> None:
    """Follow what happened to the files; what the disk refuses is told. Blocks."""
    try:
        files.look()
    except OSError as error:
        log.warning("log.not_followed", reason=error.strerror)


def keep(files: ServerLog, rules: LogRules) -> None:
    """Follow the files, and rotate those that are too large. Blocks."""
    follow(files)
    for path in (rules.stdout, rules.stderr):
        try:
            if rotate(path, limit_bytes=rules.max_bytes, keep=rules.keep):
                files.marks[path] = 0
        except OSError as error:
            log.warning("log.rotation_failed", file=str(path), reason=error.strerror)
