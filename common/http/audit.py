"""The audit: one line of JSON for every call that was to change something, in a file of its own, which is bounded.

A line is written before its answer leaves, so that it outlives a `kill -9` (not a power cut: nothing is fsynced). It says
who asked, from where, for what, and what came of it; never a body, a query, a token or a key. A call without a valid token is
not written: whoever has none could push everything else out of the file. A disk that takes nothing costs the line, not the call.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from msgspec import UNSET

from common.clock import iso
from common.http.access import is_loopback
from common.http.errors import ApiError, Handler
from common.http.openapi import Parameter
from common.wire.audit import AuditLine

log = structlog.get_logger(__name__)
READING = frozenset({"GET", "HEAD", "OPTIONS"})
UNKNOWN = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS})
AUDIT_FILE = "audit.jsonl"
FILE_LIMIT_BYTES = 8 << 20
KEPT = 3
"""Older files, beside the one that is written."""
TEXT_LIMIT = 256
REQUEST_ID_LIMIT = 128
TOLD_S = 10.0
LINES_LIMIT = 10_000
"""Of one answer."""
LINES = 1000
"""Of an answer to whoever does not say."""
SOCKETS_LIMIT_BYTES = 1 << 20
Exempt = Mapping[tuple[str, str], str]
"""Method and path of a call that is no change, and why."""
QUERY = (
    Parameter("since", {"type": "integer", "minimum": 0, "maximum": 10**10}, "Only lines from these epoch seconds on."),
    Parameter("who", {"type": "string"}, "Only callers that have this in their name."),
    Parameter("limit", {"type": "integer", "minimum": 1, "maximum": LINES_LIMIT}, "How many, the latest."),
)


class AuditLog:
    """One file's writer.

    Args:
        path: The file; made with its first line.
        service: Who writes, as its lines say.
    """

    def __init__(self, path: Path, service: str) -> None:
        self.path = path
        self._service = service
        self._told_at = -TOLD_S

    def note(self, request: web.Request, status: int, role: str | None, *, remote: str | None = None) -> None:
        """Write the line of a call that was answered; `role` is what its token or key says of the caller."""
        request_id = _plain(request.headers.get("X-Request-Id", ""), REQUEST_ID_LIMIT)
        line = AuditLine(
            time=iso(datetime.now(UTC)),
            service=self._service,
            who=_plain(who(request, role)),
            remote=_plain(remote or request.remote or ""),
            method=_plain(request.method),
            path=_plain(request.path),
            status=status,
            request_id=request_id or UNSET,
        )
        try:
            self._append(msgspec.json.encode(line) + b"\n")
        except OSError as error:
            if (now := time.monotonic()) - self._told_at >= TOLD_S:
                self._told_at = now
                log.error("audit.not_written", file=str(self.path), reason=error.strerror, path=line.path)

    def _append(self, line: bytes) -> None:
        """In the loop, like the log's lines: it is one write into the page cache."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, line) != len(line):
                os.ftruncate(descriptor, size)  # half a line would spoil the next one as well
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
        if size >= FILE_LIMIT_BYTES:
            for number in range(KEPT, 0, -1):
                older = _numbered(self.path, number - 1)
                if older.exists():
                    older.replace(_numbered(self.path, number))


def _plain(text: str, limit: int = TEXT_LIMIT) -> str:
    """What JSON can say of a caller's text, which may have bytes that are no UTF-8."""
    return text[:limit].encode(errors="replace").decode()


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines: from `since` on (epoch seconds), of callers with `who` in their name, the latest `limit`."""

    since: int = 0
    who: str = ""
    limit: int = LINES

    @classmethod
    def of(cls, request: web.Request) -> "Wanted":
        """What a request for lines asks for.

        Raises:
            ApiError: 400.
        """
        numbers = {"since": (0, 10**10), "limit": (1, LINES_LIMIT)}
        given = {name: text for name, text in request.query.items() if name in numbers}
        for name, text in given.items():
            least, most = numbers[name]
            if not re.fullmatch("[0-9]{1,11}", text, re.ASCII) or not least <= int(text) <= most:
                raise ApiError(400, f"parameter {name!r} must be a number from {least} to {most}", field=name)
        return cls(**{name: int(text) for name, text in given.items()}, who=request.query.get("who", ""))

    @property
    def began(self) -> str:
        """`since` as lines have it."""
        return iso(datetime.fromtimestamp(self.since, UTC))

    @property
    def query(self) -> dict[str, str]:
        """The same for another service."""
        return {name: str(value) for name, value in asdict(self).items() if value}

    def latest(self, lines: Iterable[AuditLine]) -> list[AuditLine]:
        """Those of `lines`, the oldest first."""
        began = self.began
        found = (line for line in lines if line.time >= began and self.who in line.who)
        return sorted(found, key=lambda line: line.time)[-self.limit :]


def read(paths: Iterable[Path], wanted: Wanted) -> list[AuditLine]:
    """The lines in these files and the older ones beside them; a file that is not there has none. Blocks."""
    lines: list[AuditLine] = []
    for path in paths:
        found: list[AuditLine] = []
        for number in range(KEPT + 1):  # the newest first, until there is enough
            try:
                raw = _numbered(path, number).read_bytes()
            except OSError:
                break
            of_file = [line for text in raw.splitlines() if (line := _line(text)) is not None]
            found += wanted.latest(of_file)
            if len(found) >= wanted.limit or (of_file and of_file[0].time < wanted.began):
                break
        lines += found
    return wanted.latest(lines)


def _line(text: bytes) -> AuditLine | None:
    try:
        return msgspec.json.decode(text, type=AuditLine)
    except msgspec.MsgspecError:  # half written as a machine went down
        return None


def is_change(request: web.Request, status: int, exempt: Exempt) -> bool:
    """Whether a call belongs into the audit: it is known, it is no mere question, and its caller may ask."""
    resource = request.match_info.route.resource
    if request.method in READING or resource is None or status in UNKNOWN:
        return False
    return (request.method, resource.canonical) not in exempt


def audited(
    audit: Callable[[web.Request], AuditLog | None], exempt: Exempt, role: Callable[[web.Request], str | None]
) -> Middleware:
    """A middleware that writes every change, outside of the one that makes answers of faults."""

    @web.middleware
    async def write(request: web.Request, handler: Handler) -> web.StreamResponse:
        answered = await handler(request)
        writer = audit(request)
        if writer is not None and is_change(request, answered.status, exempt):
            writer.note(request, answered.status, role(request))
        return answered

    return write


def who(request: web.Request, role: str | None) -> str:
    """The caller, by all that is known."""
    transport = request.transport
    shown = (transport.get_extra_info("peercert") if transport is not None else None) or {}
    names = [value for part in shown.get("subject", ()) for name, value in part if name == "commonName"]
    known = [*([role] if role else []), *(f"certificate {name}" for name in names)]
    if not known and transport is not None and is_loopback(request.remote or ""):
        user = user_of(transport.get_extra_info("peername"), transport.get_extra_info("sockname"))
        known = [] if user is None else [f"user {user}"]
    return ", ".join(known) or "anybody"


def user_of(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """The uid whose process has the other end of a connection on 127.0.0.1, as the kernel lists sockets; None: not known."""
    if client[0] != "127.0.0.1":
        return None
    ends = (f"{host_in_hex}:{port:04X}" for host_in_hex, port in (("0100007F", client[1]), ("0100007F", server[1])))
    try:
        with Path("/proc/net/tcp").open() as file:
            listed = file.read(SOCKETS_LIMIT_BYTES)
    except OSError:
        return None
    _, found, rest = listed.partition(f" {' '.join(ends)} ")
    columns = rest.split(maxsplit=5)
    return int(columns[4]) if found and len(columns) > 5 else None  # noqa: PLR2004 - state, queues, timer, retransmits, uid
