"""Heads seen lately. A client's requests differ in little but their length and their id, and so do a replica's answers.

Each head is judged by `head.py` once; the next one that is the same to the byte, but for the digits of its
Content-Length and the letters of its X-Request-Id, takes the verdict and the lines made from it. Digits and letters are
judged each time; an id of other characters makes the whole head count as new. It is remembered with another number and
another id in their place, good ones too: so every head that looks like that one is of its kind.
"""

from collections.abc import Callable, Collection, Sequence
from copy import copy
from typing import Final, Generic, TypeVar

from router.proxy import cors
from router.proxy.head import BODILESS, RequestHead, ResponseHead, parse_request, parse_response
from router.proxy.headers import forwarded_lines, response_lines, takes_events, without_coding

Head = TypeVar("Head", RequestHead, ResponseHead)
COUNT_LIMIT = 1024
SIZE_LIMIT_BYTES = 2048
"""Of a head that is remembered: with the count, 2 MiB at most."""
_LENGTH = b"\r\ncontent-length: "
_LENGTH_START = len(b"\r\ncontent-l")
_ANY_NUMBER = b"0"
_DIGITS_LIMIT: Final = 18
_ID = b"\r\nx-request-id: "
_ID_START = len(b"\r\nx-r")
_ANY_ID = b"x"


class Heads(Generic[Head]):
    """A bounded memory of parsed heads.

    Args:
        parse: Parses and completes a head; raises `BadHead`, which is not remembered.
    """

    def __init__(self, parse: Callable[[bytes], Head]) -> None:
        self._parse: Callable[[bytes], Head] = parse
        self._known: dict[bytes, Head] = {}

    def read(self, raw: bytes) -> Head:
        """The head in `raw`; not to be changed.

        Raises:
            BadHead: See `head.py`.
        """
        known = self._known
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
        head = known.get(text)
        if head is None:
            head = self._parse(raw)
            if len(text) <= SIZE_LIMIT_BYTES:
                if len(known) >= COUNT_LIMIT:
                    known.clear()
                known[text] = head
        elif (length is not None and head.length != length) or (request_id != head.request_id):
            head = copy(head)
            head.request_id = request_id or head.request_id
            if length is not None and not (isinstance(head, ResponseHead) and head.status in BODILESS):
                head.length = length
        return head


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
    """Memory of requests.

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

    return Heads(parse)


def response_heads() -> Heads[ResponseHead]:
    """Memory of responses (to anything but HEAD)."""

    def parse(raw: bytes) -> ResponseHead:
        head = parse_response(raw)
        head.lines = response_lines(head)
        return head

    return Heads(parse)
