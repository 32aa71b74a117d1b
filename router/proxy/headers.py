"""PURE. Which header fields cross the router, both ways (FAILURES.md 3.1).

Requests: an allow-list. Responses: everything but hop-by-hop fields, cookies, and what describes another server.
"""

from collections.abc import Collection

from router.proxy.head import Fields, RequestHead, ResponseHead

FORWARDED = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"content-type",
        b"idempotency-key",
        b"traceparent",
        b"tracestate",
        b"user-agent",
    }
)
FORWARDED_PREFIXES = (b"openai-", b"anthropic-")
CREDENTIALS = frozenset({b"authorization", b"x-api-key"})
_DROPPED = frozenset(
    {
        b"alt-svc",
        b"connection",
        b"content-length",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"server",
        b"set-cookie",
        b"set-cookie2",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-attempts",
        b"x-content-type-options",
        b"x-request-id",
        b"x-served-by",
    }
)


def forwarded_lines(head: RequestHead, allowed: Collection[bytes]) -> bytes:
    """The client's fields that go on, as header lines. `allowed` are exact names beside the prefixes."""
    dropped = _named_by_connection(head.fields)
    return b"".join(
        [
            b"%b: %b\r\n" % field
            for field in head.fields
            if (field[0] in allowed or field[0].startswith(FORWARDED_PREFIXES)) and field[0] not in dropped
        ]
    )


def response_lines(head: ResponseHead) -> bytes:
    """Status line and the fields that go back, without framing and without the blank line."""
    dropped = _named_by_connection(head.fields)
    lines = [b"HTTP/1.1 " + head.reason_line]
    for name, value in head.fields:
        lower = name.lower()
        if lower not in _DROPPED and lower not in dropped:
            lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)


def _named_by_connection(fields: Fields) -> Collection[bytes]:
    """Fields that `Connection` declares hop-by-hop; framing and identity cannot be removed that way."""
    for name, value in fields:
        if name in (b"connection", b"Connection"):
            return {token.strip().lower() for token in value.split(b",")} - {b"content-type", b"authorization"}
    return ()
