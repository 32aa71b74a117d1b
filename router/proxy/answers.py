"""PURE. What the router answers itself: OpenAI-shaped errors, as bytes, and error events for a begun stream."""

import json
from http import HTTPStatus

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


def error_body(status: int, code: str, message: str) -> bytes:
    """`{"error": {"message", "type", "code", "param"}}` as OpenAI's clients expect it."""
    kind = _TYPES.get(status, "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error")
    return json.dumps(
        {"error": {"message": message, "type": kind, "code": code, "param": None}}, separators=(",", ":")
    ).encode()


def error_event(code: str, message: str) -> bytes:
    """The last event of a stream that broke; the blank line before it ends an event that was cut."""
    return b"\n\ndata: " + error_body(HTTPStatus.BAD_GATEWAY, code, message) + b"\n\n"


def local_answer(
    status: int,
    body: bytes,
    *,
    keep_alive: bool,
    head_only: bool = False,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> bytes:
    """A whole HTTP/1.1 answer with a JSON body."""
    lines = [
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-content-type-options: nosniff\r\n"
        % (status, HTTPStatus(status).phrase.encode(), len(body))
    ]
    lines += [b"%b: %b\r\n" % header for header in headers]
    lines.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    if not head_only:
        lines.append(body)
    return b"".join(lines)
