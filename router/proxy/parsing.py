"""Request and response heads: httptools parses them, the rules below reject what it lets through.

The rules are docs/faults.md F12, R01 to R82 for requests and U01 to U24 for responses. A head is
parsed only once it is whole, by a parser used for that head alone; bodies are framed by `chunked.py` and by counting.
"""

import re
from collections.abc import Callable, Collection, Sequence
from typing import Final

import httptools

from router.proxy.head import BODILESS, BadHead, Fields, RequestHead, ResponseHead
from router.proxy.paths import PROXIED, stored_response
from router.proxy.spelling import known_path
from router.urlencoded import models_in

FIELD_LIMIT_BYTES: Final = 8190
FIELD_COUNT_LIMIT: Final = 128

_REQUEST_LINE = re.compile(rb"([A-Z]{3,16}) (\*|/[!\"$-~]*) HTTP/1\.([01])\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\r\n\x00]*)?\r\n")
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_UPGRADE = re.compile(rb"\r\n[Uu][Pp][Gg][Rr][Aa][Dd][Ee]:([^\r\n]*)")
_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"})

MAYBE_UNREAD = frozenset({401, 403, 404, 405, 411, 413, 414, 415, 431, 501})
"""Answers for which a server need not look at the body. One that leaves it unread, as Python's own `http.server` does, takes it
for the next request on the connection: that is not used again (W65)."""
_NOT_HOP_BY_HOP = frozenset({b"close", b"keep-alive", b"authorization", b"content-type"})


class _Collector:
    """httptools' callbacks: keeps the fields."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: Fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


def parse_request(raw: bytes, prefixes: Sequence[bytes] = (), extra: Collection[bytes] = ()) -> RequestHead:
    """Parse a whole head, blank line included; its path is the known one that it stands for (`spelling.py`).

    Raises:
        BadHead: It is malformed, ambiguous, or more than we take.
    """
    line = _REQUEST_LINE.match(raw)
    if line is None:
        raise BadHead("malformed request line")
    method, target, minor = line.groups()
    if method not in _METHODS:
        raise BadHead("method not supported", 405)
    if len(target) > FIELD_LIMIT_BYTES:
        raise BadHead("the target is too long", 414)
    upgrades = []
    if _UPGRADE.search(raw):
        upgrades = _UPGRADE.findall(raw)
        raw = _UPGRADE.sub(b"", raw)  # not honoured, never forwarded as it came (R69, R70)
    written, _, query = target.partition(b"?")
    path = known_path(written, prefixes, extra)
    if path.startswith(b"//"):
        raise BadHead("malformed request line")  # R66
    operation = PROXIED.get(path) or stored_response(path)
    head = RequestHead(method, path, query, http10=minor == b"0", keep_alive=minor == b"1", operation=operation)
    if operation is not None and operation.websocket:
        head.websocket = b",".join(upgrades)
    if query:
        head.query_models = models_in(query)
    try:
        _take_fields(head, raw)
        _frame_request(head)
    except BadHead as bad_head:
        bad_head.path = path
        raise
    return head


def _take_fields(head: RequestHead, raw: bytes) -> None:
    for original, value in _fields(httptools.HttpRequestParser, raw):
        name = original.lower()
        rule = _REQUEST_RULES.get(name)
        if b"_" in name or not value.isascii():
            if rule is not None:
                raise BadHead("a header field is not ASCII")
            continue  # R82, R48: dropped, so that nobody behind us can read it differently
        head.fields.append((name, value))
        if rule is not None:
            rule(head, value)


def parse_response(raw: bytes, *, to_head_request: bool = False) -> ResponseHead:
    """Parse a whole head, blank line included. A 1xx is the caller's to skip.

    Raises:
        BadHead: It is malformed or ambiguous; the connection must not be used again.
    """
    line = _STATUS_LINE.match(raw)
    if line is None:
        raise BadHead("malformed status line")
    http10 = line[1] == b"0"
    fields = _fields(httptools.HttpResponseParser, raw)
    head = ResponseHead(int(line[2]), raw[9 : line.end()], fields, http10=http10, keep_alive=not http10)
    for name, value in fields:
        rule = _RESPONSE_RULES.get(name.lower())
        if rule is not None:
            rule(head, value)
    if head.status in MAYBE_UNREAD:
        head.keep_alive = False
    if head.chunked and head.length is not None:
        raise BadHead("ambiguous framing")
    if to_head_request or head.status in BODILESS:
        head.length, head.chunked = 0, False
    return head


def _fields(parser: type, raw: bytes) -> Fields:
    """The header fields of `raw` by httptools, within our limits."""
    collector = _Collector()
    try:
        parser(collector).feed_data(raw)
    except httptools.HttpParserError as error:
        raise BadHead("malformed header") from error
    except httptools.HttpParserUpgrade:
        pass  # of a 101, whose fields are all there: it is taken only where it was asked for
    if len(collector.fields) > FIELD_COUNT_LIMIT:
        raise BadHead("too many header fields", 431)
    if len(raw) > FIELD_LIMIT_BYTES and any(
        len(name) + len(value) > FIELD_LIMIT_BYTES for name, value in collector.fields
    ):
        raise BadHead("a header field is too long", 431)
    return collector.fields


def _frame_request(head: RequestHead) -> None:
    """Decide how the body is framed, or that it is ambiguous (R01 to R24)."""
    if head.host is None and not head.http10:
        raise BadHead("Host is missing")
    if head.host is not None and not _HOST.fullmatch(head.host):
        raise BadHead("Host is no host")
    if head.transfer_encoding is not None:
        if head.content_length is not None or head.http10:
            raise BadHead("ambiguous framing")
        if head.transfer_encoding.strip(b" \t").lower() != b"chunked":
            raise BadHead("this transfer encoding is not supported", 501)
        head.length = None
    elif head.content_length is not None:
        head.length = _number(head.content_length)


def _number(text: bytes) -> int:
    digits = text.strip(b" \t")
    if not _DIGITS.fullmatch(digits):
        raise BadHead("Content-Length is no number")
    return int(digits)


def _once(attribute: str, name: str) -> Callable[[RequestHead, bytes], None]:
    """A rule that keeps a field's value and refuses a second one."""

    def rule(head: RequestHead, value: bytes) -> None:
        if getattr(head, attribute) is not None:
            raise BadHead(f"{name} appears twice")
        setattr(head, attribute, value)

    return rule


def _first(attribute: str) -> Callable[[RequestHead, bytes], None]:
    """A rule that keeps a field's first value: of a list over several lines, the first line has the first member."""

    def rule(head: RequestHead, value: bytes) -> None:
        if getattr(head, attribute) is None:
            setattr(head, attribute, value)

    return rule


def _keep(attribute: str) -> Callable[[RequestHead, bytes], None]:
    return lambda head, value: setattr(head, attribute, value)


def _deadline(name: bytes) -> Callable[[RequestHead, bytes], None]:
    return lambda head, value: head.deadlines.append((name, value))


def _connection(head: RequestHead | ResponseHead, value: bytes) -> None:
    tokens = frozenset(token.strip() for token in value.lower().split(b","))
    head.keep_alive = b"close" not in tokens and (head.keep_alive or b"keep-alive" in tokens)
    head.hop_by_hop |= tokens - _NOT_HOP_BY_HOP


def _content_encoding(_head: RequestHead, value: bytes) -> None:
    if value.strip().lower() not in (b"", b"identity"):
        raise BadHead("compressed request bodies are not taken", 415)


def _content_type(head: RequestHead, value: bytes) -> None:
    if head.content_type is not None:
        raise BadHead("Content-Type appears twice")
    head.content_type = value
    kind = value.strip().lower()
    head.is_multipart = kind.startswith(b"multipart/")
    head.is_urlencoded = kind.startswith((b"application/x-www-form-urlencoded", b"application/x-url-encoded"))


def _expect(head: RequestHead, value: bytes) -> None:
    if value.strip().lower() != b"100-continue":
        raise BadHead("this expectation cannot be met", 417)
    head.expects_continue = True


def _response_coding(head: ResponseHead, value: bytes) -> None:
    head.coded = head.coded or value.strip().lower() not in (b"", b"identity")


def _response_length(head: ResponseHead, value: bytes) -> None:
    if head.length is not None:
        raise BadHead("Content-Length appears twice")
    head.length = _number(value)


def _response_encoding(head: ResponseHead, value: bytes) -> None:
    if head.chunked or head.http10 or value.strip().lower() != b"chunked":
        raise BadHead("this transfer encoding is not supported")
    head.chunked = True


def _response_type(head: ResponseHead, value: bytes) -> None:
    kind = value.lower()
    head.is_event_stream = kind.startswith(b"text/event-stream")
    head.is_json = kind.startswith(b"application/json")


_REQUEST_RULES: dict[bytes, Callable[[RequestHead, bytes], None]] = {
    b"authorization": _once("authorization", "Authorization"),
    b"connection": _connection,
    b"content-encoding": _content_encoding,
    b"content-length": _once("content_length", "Content-Length"),
    b"content-type": _content_type,
    b"expect": _expect,
    b"host": _once("host", "Host"),
    b"transfer-encoding": _once("transfer_encoding", "Transfer-Encoding"),
    b"user-agent": _keep("user_agent"),
    b"x-api-key": _once("api_key", "X-Api-Key"),
    b"x-first-byte-timeout": _deadline(b"X-First-Byte-Timeout"),
    b"x-forwarded-for": _first("forwarded_for"),
    b"x-request-timeout": _deadline(b"X-Request-Timeout"),
    b"x-request-id": _keep("request_id"),
}
_RESPONSE_RULES: dict[bytes, Callable[[ResponseHead, bytes], None]] = {
    b"connection": _connection,
    b"content-encoding": _response_coding,
    b"content-length": _response_length,
    b"content-type": _response_type,
    b"transfer-encoding": _response_encoding,
}
