"""PURE. Which pages in a browser may read the router's answers (CORS, fetch.spec.whatwg.org 3.2): those of the settings.

The lines are made once per head that is kept, not per request. A listed origin is echoed, and its page may send credentials.
`*` allows any page, without credentials, as the standard has it. The trees that change the fleet answer no page at all: a
visitor's browser must not be a way to them.
"""

from collections.abc import Collection
from typing import Final

from router.proxy.paths import ADMIN_TREES

ANY: Final = b"*"
_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE"
_EXPOSED: Final = b"retry-after, x-attempts, x-request-id, x-served-by, x-should-retry"
_MAX_AGE_S: Final = 600
"""Chromium takes two hours at most; a changed setting should be seen sooner."""

Fields = list[tuple[bytes, bytes]]


def answer_lines(origins: Collection[bytes], path: bytes, fields: Fields) -> bytes:
    """What is added to every answer to this request, error or stream; nothing unless `origins` are set."""
    if not origins or path.startswith(ADMIN_TREES):
        return b""
    allowed = _allowed(origins, _field(fields, b"origin"))
    exposed = b"access-control-expose-headers: %b\r\n" % _EXPOSED if allowed else b""
    return allowed + exposed + (b"" if ANY in origins else b"vary: Origin\r\n")


def preflight_lines(origins: Collection[bytes], method: bytes, path: bytes, fields: Fields) -> bytes | None:
    """The answer's lines to a browser that asks before it sends a request; None if this is no such question, or not allowed."""
    requested_method = _field(fields, b"access-control-request-method")
    if method != b"OPTIONS" or requested_method is None or path.startswith(ADMIN_TREES):
        return None
    allowed = _allowed(origins, _field(fields, b"origin"))
    if not allowed:
        return None
    names = _field(fields, b"access-control-request-headers")
    return b"%baccess-control-allow-methods: %b\r\n%baccess-control-max-age: %d\r\nvary: Origin\r\n" % (
        allowed,
        _METHODS,
        b"access-control-allow-headers: %b\r\n" % names if names else b"",
        _MAX_AGE_S,
    )


def may_open(origins: Collection[bytes], host: bytes | None, fields: Fields) -> bool:
    """False for a WebSocket that a page of a foreign origin opens: browsers ask for no leave to, so the server must judge.

    Programs send no `Origin`, and a page that came from this very host is its own.
    """
    origin = _field(fields, b"origin")
    return origin is None or bool(_allowed(origins, origin)) or origin.partition(b"://")[2] == host


def _allowed(origins: Collection[bytes], origin: bytes | None) -> bytes:
    if origin is None:
        return b""
    if ANY in origins:
        return b"access-control-allow-origin: *\r\n"
    if origin not in origins:
        return b""
    return b"access-control-allow-origin: %b\r\naccess-control-allow-credentials: true\r\n" % origin


def _field(fields: Fields, field: bytes) -> bytes | None:
    return next((value for name, value in fields if name == field), None)
