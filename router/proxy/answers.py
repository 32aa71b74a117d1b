"""PURE. What the router answers itself: errors in the dialect of their path, as bytes, and as events of a begun stream."""

import json
from collections.abc import Mapping
from http import HTTPStatus

from router.proxy.paths import Dialect

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_ANTHROPIC_TYPES = {
    **_TYPES,
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""platform.claude.com/docs/en/api/errors"""


def error_body(
    status: int,
    code: str,
    message: str,
    dialect: Dialect = Dialect.OPENAI,
    more: Mapping[str, object] | None = None,
) -> bytes:
    """An error as the official clients of `dialect` expect it; `more` are further members under `error`.

    OpenAI's: `{"error": {"message", "type", "code", "param"}}`; Anthropic's: `{"type": "error", "error": {"type",
    "message"}}`, where we add the code.
    """
    return _encode(_error(status, code, message, dialect, more))


def error_event(code: str, message: str, dialect: Dialect = Dialect.OPENAI) -> bytes:
    """The last event of a stream that broke; the blank line before it ends an event that was cut."""
    content = _error(HTTPStatus.BAD_GATEWAY, code, message, dialect)
    if dialect is Dialect.RESPONSES:
        # Typed clients read the event's own members, OpenAI's for Python raises for an `error`.
        content = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": 0, **content}
    return b"\n\n%bdata: %b\n\n" % (event_line(dialect), _encode(content))


def event_line(dialect: Dialect) -> bytes:
    """The line that says of an event that it is an error, in dialects whose events have names."""
    return b"" if dialect is Dialect.OPENAI else b"event: error\n"


def openai_error(status: int, code: str, message: str) -> dict[str, str | None]:
    """What stands under `error` for OpenAI's clients."""
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return {"message": message, "type": _TYPES.get(status, kind), "code": code, "param": None}


def _error(
    status: int, code: str, message: str, dialect: Dialect, more: Mapping[str, object] | None = None
) -> dict[str, object]:
    if dialect is not Dialect.ANTHROPIC:
        return {"error": {**openai_error(status, code, message), **(more or {})}}
    kind = "api_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return {
        "type": "error",
        "error": {"type": _ANTHROPIC_TYPES.get(status, kind), "message": message, "code": code, **(more or {})},
    }


def _encode(content: dict[str, object]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def local_answer(
    status: int,
    body: bytes,
    *,
    keep_alive: bool,
    head_only: bool = False,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    more_lines: bytes = b"",
) -> bytes:
    """A whole HTTP/1.1 answer with a JSON body; `more_lines` are further header lines."""
    lines = [
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-content-type-options: nosniff\r\n"
        % (status, HTTPStatus(status).phrase.encode(), len(body))
    ]
    lines += [b"%b: %b\r\n" % header for header in headers]
    lines.append(more_lines)
    lines.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    if not head_only:
        lines.append(body)
    return b"".join(lines)


def preflight_answer(lines: bytes, *, keep_alive: bool) -> bytes:
    """The answer to a browser's question, which has no body and so no length either (RFC 9110 8.6)."""
    return b"HTTP/1.1 204 No Content\r\n" + lines + (b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
