"""PURE. Which header fields cross the router, both ways (docs/faults.md G7, G8).

Requests: an allow-list. Responses: everything but hop-by-hop fields, cookies, and what describes another server.
"""

from collections.abc import Collection

from router.proxy.head import RequestHead, ResponseHead

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
        b"access-control-allow-credentials",
        b"access-control-allow-headers",
        b"access-control-allow-methods",
        b"access-control-allow-origin",
        b"access-control-expose-headers",
        b"access-control-max-age",
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


_OF_THE_BODY = frozenset(
    {b"content-type", b"content-encoding", b"content-digest", b"content-md5", b"digest", b"etag", b"repr-digest"}
)
_NOT_OF_CHATS = frozenset({b"accept-encoding", b"content-type", b"x-api-key"})
_EVENTS = (b"text/event-stream", b"text/*", b"*/*", b"application/json")
"""`application/json` is among them: OpenAI's and Anthropic's own clients send it alone when they ask for a stream."""
_CODING = frozenset({b"accept-encoding"})


def takes_events(head: RequestHead) -> bool:
    """False for a client that says what it takes, and names nothing that an event stream could be."""
    accepted = [value.lower() for name, value in head.fields if name == b"accept"]
    return not accepted or any(kind in value for value in accepted for kind in _EVENTS)


def without_coding(lines: bytes) -> bytes:
    """Forwarded lines of a request whose answer must come as it is, not compressed."""
    return _without(lines, _CODING) + b"accept-encoding: identity\r\n"


def forwarded_lines(head: RequestHead, allowed: Collection[bytes]) -> bytes:
    """The client's fields that go on, as header lines. `allowed` are exact names beside the prefixes."""
    return b"".join(
        [
            b"%b: %b\r\n" % field
            for field in head.fields
            if (field[0] in allowed or field[0].startswith(FORWARDED_PREFIXES)) and field[0] not in head.hop_by_hop
        ]
    )


def as_chat(lines: bytes) -> bytes:
    """Forwarded lines of a request that is translated into one for chat completions: plain JSON, and a key as OpenAI's."""
    forwarded = [b"content-type: application/json", b"accept-encoding: identity"]
    names = {line.partition(b":")[0] for line in lines.split(b"\r\n")}
    for line in lines.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"x-api-key" and b"authorization" not in names:
            forwarded.append(b"authorization: Bearer " + value.strip())
        elif name and name not in _NOT_OF_CHATS and not name.startswith(b"anthropic-"):
            forwarded.append(line)
    return b"\r\n".join(forwarded) + b"\r\n"


def without_credentials(lines: bytes) -> bytes:
    """Forwarded lines for a replica that has a key of its own: the client's is not for it."""
    return _without(lines, CREDENTIALS)


def _without(lines: bytes, names: Collection[bytes]) -> bytes:
    fields = lines.split(b"\r\n")
    return b"\r\n".join([field for field in fields if field.partition(b":")[0] not in names])


def response_lines(head: ResponseHead) -> bytes:
    """Status line and the fields that go back, without framing and without the blank line."""
    return b"".join([b"HTTP/1.1 " + head.reason_line, *_fields_back(head)])


def retyped(head: ResponseHead, status_text: bytes, kind: bytes) -> bytes:
    """The same for an answer that gets another body, of type `kind`; `status_text` as `ResponseHead.reason_line`."""
    fields = [line for line in _fields_back(head) if line.partition(b":")[0].lower() not in _OF_THE_BODY]
    return b"".join([b"HTTP/1.1 " + status_text, *fields, b"content-type: %b\r\n" % kind])


def _fields_back(head: ResponseHead) -> list[bytes]:
    lines: list[bytes] = []
    for field in head.fields:
        lower = field[0].lower()
        if lower not in _DROPPED and lower not in head.hop_by_hop:
            lines.append(b"%b: %b\r\n" % field)
    return lines
