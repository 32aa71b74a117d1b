"""Heads seen lately. A client's requests differ in little but the length of their bodies, and so do a replica's answers.

Each head is judged by `head.py` once; the next one that is the same to the byte, but for the digits of its
Content-Length, takes the verdict and the lines made from it. The digits are judged each time.
"""

from collections.abc import Callable, Collection
from copy import copy
from typing import Generic, TypeVar

from router.proxy.head import RequestHead, ResponseHead, parse_request, parse_response
from router.proxy.headers import forwarded_lines, response_lines

Head = TypeVar("Head", RequestHead, ResponseHead)
COUNT_LIMIT = 1024
SIZE_LIMIT_BYTES = 2048
"""Of a head that is remembered: with the count, 2 MiB at most."""
_LENGTH = b"\r\ncontent-length: "
_TAIL = len(b"ength: ")
_DIGITS_LIMIT = 18


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
        key, length = raw, None
        at = raw.rfind(b"ength: ") + _TAIL
        if raw[at - len(_LENGTH) : at].lower() == _LENGTH:
            end = raw.find(b"\r\n", at)
            digits = raw[at:end]
            if digits.isdigit() and len(digits) <= _DIGITS_LIMIT:
                key, length = raw[:at] + raw[end:], int(digits)
        head = known.get(key)
        if head is None:
            head = self._parse(raw)
            if len(key) <= SIZE_LIMIT_BYTES:
                if len(known) >= COUNT_LIMIT:
                    known.clear()
                known[key] = head
        elif length is not None and head.length != length:
            head = copy(head)
            head.length = length
        return head


def request_heads(allowed: Collection[bytes]) -> Heads[RequestHead]:
    """Memory of requests whose fields named in `allowed` go on to replicas."""

    def parse(raw: bytes) -> RequestHead:
        head = parse_request(raw)
        head.forwarded = forwarded_lines(head, allowed)
        return head

    return Heads(parse)


def response_heads() -> Heads[ResponseHead]:
    """Memory of responses (to anything but HEAD)."""

    def parse(raw: bytes) -> ResponseHead:
        head = parse_response(raw)
        head.lines = response_lines(head)
        return head

    return Heads(parse)
