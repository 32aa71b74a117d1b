"""PURE. What the router reads of a WebSocket (RFC 6455): both sides of the handshake, and where frames end.

All else passes as bytes: messages, their compression and subprotocols are agreed between client and replica. Where frames
end matters for one thing only: a Close of the router's own must not fall into the middle of one.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from hashlib import sha1
from typing import Final

from router.proxy.head import RequestHead, ResponseHead

VERSION: Final = b"13"
UPGRADE_LINES: Final = b"upgrade: websocket\r\nconnection: Upgrade\r\n"
KEY_PROTOCOL: Final = b"openai-insecure-api-key."
"""Browsers cannot set `Authorization` for a WebSocket: OpenAI's clients offer the API key as a subprotocol behind this."""
CLOSE_REASON_LIMIT_BYTES: Final = 123
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CLOSE = 0x8
_LENGTH_MASK, _MASKED = 0x7F, 0x80
_TWO_BYTES, _EIGHT_BYTES = 126, 127
_HEADER_LIMIT_BYTES: Final = 14


class BadHandshake(ValueError):
    """A request that opens no WebSocket, where only those are served; `headers` are for the answer."""

    def __init__(self, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class Handshake:
    """A client's, as it should be.

    Args:
        key: `Sec-WebSocket-Key`.
        protocols: The subprotocols it offers, in its order.
        extensions: What it says of extensions.
    """

    def __init__(self, key: bytes, protocols: tuple[bytes, ...], extensions: bytes) -> None:
        self.key = key
        self.protocols = protocols
        self._extensions = extensions

    @property
    def shown_key(self) -> bytes | None:
        """The API key among the subprotocols."""
        return next((one[len(KEY_PROTOCOL) :] for one in self.protocols if one.startswith(KEY_PROTOCOL)), None)

    @property
    def without_key(self) -> tuple[bytes, ...]:
        """The subprotocols that are none of the router's business."""
        return tuple(one for one in self.protocols if not one.startswith(KEY_PROTOCOL))

    def lines(self, protocols: Sequence[bytes]) -> bytes:
        """The handshake for a replica that is offered `protocols`, as header lines."""
        lines = UPGRADE_LINES + b"sec-websocket-version: %b\r\nsec-websocket-key: %b\r\n" % (VERSION, self.key)
        if protocols:
            lines += b"sec-websocket-protocol: %b\r\n" % b", ".join(protocols)
        if self._extensions:
            lines += b"sec-websocket-extensions: %b\r\n" % self._extensions
        return lines


def read_handshake(head: RequestHead) -> Handshake:
    """The handshake in `head`.

    Raises:
        BadHandshake: There is none, or it is not as RFC 6455 4.2.1 has it.
    """
    if head.method != b"GET":
        raise BadHandshake(405, "this path takes GET, for a WebSocket", (b"allow", b"GET"))
    asks = (head.websocket or b"").strip().lower() == b"websocket" and b"upgrade" in head.hop_by_hop
    if not asks or head.http10:
        message = "this path is a WebSocket: Upgrade: websocket and Connection: Upgrade are needed, behind a proxy too"
        raise BadHandshake(426, message, (b"upgrade", b"websocket"))
    if _values(head.fields, b"sec-websocket-version") != [VERSION]:
        message = "Sec-WebSocket-Version must be 13"
        raise BadHandshake(426, message, (b"upgrade", b"websocket"), (b"sec-websocket-version", VERSION))
    keys = _values(head.fields, b"sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise BadHandshake(400, "Sec-WebSocket-Key must be one field of 16 bytes in base64")
    if head.length != 0:
        raise BadHandshake(400, "a request for a WebSocket has no body")
    offered = b",".join(_values(head.fields, b"sec-websocket-protocol"))
    protocols = tuple(one.strip() for one in offered.split(b",")) if offered else ()
    if not all(_TOKEN.fullmatch(one) for one in protocols):
        raise BadHandshake(400, "Sec-WebSocket-Protocol must be names with commas between them")
    return Handshake(keys[0], protocols, b", ".join(_values(head.fields, b"sec-websocket-extensions")))


def is_accepted(head: ResponseHead, key: bytes, offered: Sequence[bytes]) -> bool:
    """True for a 101 which proves that the replica means this handshake, and takes a subprotocol that it was offered."""
    fields = [(name.lower(), value) for name, value in head.fields]
    proof = base64.b64encode(sha1(key + _GUID, usedforsecurity=False).digest())
    chosen = _values(fields, b"sec-websocket-protocol")
    return (
        [value.lower() for value in _values(fields, b"upgrade")] == [b"websocket"]
        and b"upgrade" in head.hop_by_hop
        and _values(fields, b"sec-websocket-accept") == [proof]
        and (not chosen or (len(chosen) == 1 and chosen[0] in offered))
    )


def close_frame(code: int, reason: str) -> bytes:
    """A Close from a server; `reason` is cut to what fits."""
    payload = code.to_bytes(2, "big") + reason.encode()[:CLOSE_REASON_LIMIT_BYTES]
    return bytes((0x80 | _CLOSE, len(payload))) + payload


class Frames:
    """Follows the frames of one direction, by their headers only."""

    def __init__(self) -> None:
        self.closed = False
        """A Close has passed, at least its beginning."""
        self._left = 0
        self._header = b""

    @property
    def between(self) -> bool:
        """True where one frame has ended and the next has not begun."""
        return not self._left and not self._header

    def feed(self, data: bytes) -> int:
        """Take the next bytes; returns where in them the last frame that ends there ends, or -1."""
        at, ended, size = 0, -1, len(data)
        while at < size:
            if not self._left:
                before = len(self._header)
                header = self._header + data[at : at + _HEADER_LIMIT_BYTES - before]
                wanted = _header_bytes(header)
                if len(header) < wanted:
                    self._header = header
                    return ended
                self._header = b""
                at += wanted - before
                self._left = _payload_bytes(header)
                self.closed = self.closed or header[0] & 0xF == _CLOSE
            taken = min(self._left, size - at)
            self._left -= taken
            at += taken
            if not self._left:
                ended = at
        return ended


def _header_bytes(header: bytes) -> int:
    """How long the header is that begins with `header`."""
    if len(header) < 2:  # noqa: PLR2004 - the second byte tells
        return 2
    short = header[1] & _LENGTH_MASK
    more = 2 if short == _TWO_BYTES else 8 if short == _EIGHT_BYTES else 0
    return 2 + more + (4 if header[1] & _MASKED else 0)


def _payload_bytes(header: bytes) -> int:
    short = header[1] & _LENGTH_MASK
    if short < _TWO_BYTES:
        return short
    return int.from_bytes(header[2:4] if short == _TWO_BYTES else header[2:10], "big")


def _values(fields: Sequence[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    return [value.strip() for name, value in fields if name == wanted]


def _is_key(value: bytes) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == _KEY_BYTES
    except binascii.Error:
        return False
