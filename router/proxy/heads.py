"""A cache of parsed heads: a client's requests differ in little but their length and their id, and so do a replica's answers.

The key is the head's text with a fixed number for its Content-Length and a fixed word for its X-Request-Id. Those two are
read anew from every head; an id of other characters than letters, digits and `-` stays in the key, so that head is parsed.
A head is kept when it comes the second time. One that differs from request to request otherwise (a `traceparent`, a cookie)
is therefore parsed each time and never kept, with whatever credentials it carries.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, Generic, TypeVar

from router.proxy import cors
from router.proxy.head import BODILESS, RequestHead, ResponseHead
from router.proxy.headers import forwarded_lines, response_lines, takes_events, without_coding
from router.proxy.parsing import parse_request, parse_response

Head = TypeVar("Head", RequestHead, ResponseHead)
COUNT_LIMIT: Final = 1024
SIZE_LIMIT_BYTES: Final = 2048
"""Of a head that is kept: with the count, 2 MiB at most."""
_SEEN_LIMIT: Final = 8192
"""Of heads that came once: their hashes, 8 bytes and a set's overhead each."""
_LENGTH: Final = b"\r\ncontent-length: "
_LENGTH_START: Final = len(b"\r\ncontent-l")
_ANY_NUMBER: Final = b"0"
_DIGITS_LIMIT: Final = 18
_ID: Final = b"\r\nx-request-id: "
_ID_START: Final = len(b"\r\nx-r")
_ANY_ID: Final = b"x"


class Heads(Generic[Head]):
    """A bounded cache of parsed heads.

    Args:
        parse: Parses and completes a head; raises `BadHead`, after which nothing is kept.
        copied: Makes another one of a head, which may be changed.
    """

    def __init__(self, parse: Callable[[bytes], Head], copied: Callable[[Head], Head]) -> None:
        self._parse: Callable[[bytes], Head] = parse
        self._copied: Callable[[Head], Head] = copied
        self._kept: dict[bytes, Head] = {}
        self._seen: set[int] = set()
        """Hashes of heads that came once."""

    def read(self, raw: bytes) -> Head:
        """The head in `raw`; not to be changed.

        Raises:
            BadHead: See `parsing.py`.
        """
        text = raw
        length: int | None = None
        request_id: bytes | None = None
        at = text.rfind(b"ength: ") - _LENGTH_START
        if at >= 0 and text[at : at + len(_LENGTH)].lower() == _LENGTH:
            at += len(_LENGTH)
            end, number = _number_line(text, at)
            if end > at:
                text, length = text[:at] + _ANY_NUMBER + text[end:], number
        at = text.find(b"equest-") - _ID_START
        if at >= 0 and text[at : at + len(_ID)].lower() == _ID:
            at += len(_ID)
            end = text.find(b"\r\n", at)
            letters = text[at:end]
            if letters.replace(b"-", b"").isalnum():
                text, request_id = text[:at] + _ANY_ID + text[end:], letters
        head = self._kept.get(text)
        if head is None:
            head = self._parse(raw)
            if len(text) <= SIZE_LIMIT_BYTES:
                self._keep(text, head)
        elif (length is not None and head.length != length) or (request_id != head.request_id):
            head = self._copied(head)
            head.request_id = request_id or head.request_id
            if length is not None and not (isinstance(head, ResponseHead) and head.status in BODILESS):
                head.length = length
        return head

    def _keep(self, text: bytes, head: Head) -> None:
        """Keep a head that came before; else only remember that it came."""
        mark = hash(text)
        if mark in self._seen:
            if len(self._kept) >= COUNT_LIMIT:
                self._kept.clear()
            self._kept[text] = head
            return
        if len(self._seen) >= _SEEN_LIMIT:
            self._seen.clear()
        self._seen.add(mark)


def _number_line(text: bytes, start: int) -> tuple[int, int]:
    """Where the digits at `start` end, and their number; (`start`, 0) if a line's end does not follow."""
    number, position = 0, start
    limit = min(len(text), start + _DIGITS_LIMIT + 1)
    while position < limit:
        digit = text[position] - 0x30
        if not 0 <= digit <= 9:  # noqa: PLR2004 - a decimal digit
            break
        number = number * 10 + digit
        position += 1
    if position - start > _DIGITS_LIMIT or text[position : position + 2] != b"\r\n":
        return start, 0
    return position, number


def request_heads(
    allowed: Collection[bytes],
    prefixes: Sequence[bytes] = (),
    extra_paths: Collection[bytes] = (),
    origins: Collection[bytes] = (),
) -> Heads[RequestHead]:
    """The cache of requests' heads.

    Args:
        allowed: Fields that go on to replicas.
        prefixes: Taken off paths.
        extra_paths: Proxied beside those of `paths.py`.
        origins: Whose pages may read the answers.
    """

    def parse(raw: bytes) -> RequestHead:
        head = parse_request(raw, prefixes, extra_paths)
        head.cors = cors.answer_lines(origins, head.path, head.fields)
        head.preflight = cors.preflight_lines(origins, head.method, head.path, head.fields)
        head.forwarded = forwarded_lines(head, allowed)
        head.forwarded_for_stream = without_coding(head.forwarded)
        head.takes_events = takes_events(head)
        return head

    return Heads(parse, RequestHead.copied)


def response_heads() -> Heads[ResponseHead]:
    """The cache of responses' heads (to anything but HEAD)."""

    def parse(raw: bytes) -> ResponseHead:
        head = parse_response(raw)
        head.lines = response_lines(head)
        return head

    return Heads(parse, ResponseHead.copied)
