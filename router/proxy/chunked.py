"""PURE. The chunked transfer coding, strictly: hex sizes; extensions and trailers bounded, and discarded (RFC 9112 7.1).

`Chunked` serves both legs. For a response whose reads end on chunk borders it says so, and the bytes pass unchanged;
otherwise it hands out payload to be framed anew, so that our side always stands on a border and an error event can
always be appended.
"""

import re
from typing import Final

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_DIGITS_LIMIT: Final = 15
_CR: Final = 0x0D
_LF: Final = 0x0A
LAST_CHUNK: Final = b"0\r\n\r\n"
LINE_LIMIT_BYTES: Final = 256
"""Of a size line with its extension; longer ones are an attack, not a client (docs/faults.md R32)."""
TRAILERS_LIMIT_BYTES: Final = 8192
"""Of all trailer lines together: as much as one field of a head may have."""
_TRAILER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t\x20-\x7e\x80-\xff]*")
_NO_TRAILERS = frozenset({b"content-length", b"transfer-encoding"})
"""They would frame what is over already: somebody hopes that we read them otherwise than the next server (R34)."""


class BadChunk(ValueError):
    """The framing is broken; nothing after it can be trusted."""


def _plain_size(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the size line at `start` ends and what it says; -1 for one that is not whole, or more than plain digits.

    Digit by digit: compiled, that is a few machine instructions for each, and no object.
    """
    size, position = 0, start
    digits_end = min(end, start + _DIGITS_LIMIT + 1)
    while position < digits_end:
        digit = data[position]
        if 0x30 <= digit <= 0x39:  # noqa: PLR2004 - 0 to 9
            digit -= 0x30
        elif 0x61 <= digit <= 0x66:  # noqa: PLR2004 - a to f
            digit -= 0x61 - 10
        elif 0x41 <= digit <= 0x46:  # noqa: PLR2004 - A to F
            digit -= 0x41 - 10
        else:
            break
        size = size * 16 + digit
        position += 1
    digits = position - start
    if not 0 < digits <= _DIGITS_LIMIT or position + 1 >= end or data[position] != _CR or data[position + 1] != _LF:
        return -1, 0
    return position, size


class Chunked:
    """State of one chunked body.

    Attributes:
        ended: True once the last chunk and the blank line were read.
        surplus: What came after the end (a pipelined request, or poison).
    """

    __slots__ = ("_line", "_remaining", "_seen_last", "_trailer_bytes", "ended", "surplus")

    def __init__(self) -> None:
        self._remaining = 0  # payload bytes of this chunk yet to come, plus 2 for its line end; 0: at a size line
        self._line = b""  # begun size line or trailer line
        self._seen_last = False
        self._trailer_bytes = 0
        self.ended = False
        self.surplus = b""

    def passes_whole(self, data: bytes) -> bool:
        """True when `data` is one or more whole chunks: forward it unchanged, but for the closing one (`ended`).

        False changes nothing: call `payload` with the same data.

        Raises:
            BadChunk: The framing is broken.
        """
        if self._remaining or self._line or self._seen_last:
            return False
        position, end = 0, len(data)
        while position < end:
            line_end, length = _plain_size(data, position, end)
            if line_end < 0:
                return False
            if length == 0:
                self.ended = data[position:] == LAST_CHUNK
                return self.ended
            position = line_end + 4 + length
            if position > end:
                return False
            if data[position - 2] != _CR or data[position - 1] != _LF:
                raise BadChunk("chunk data longer than its size")
        return True

    def payload(self, data: bytes) -> list[bytes]:
        """Decode any piece of the body; returns the payload in it.

        Raises:
            BadChunk: The framing is broken.
        """
        pieces: list[bytes] = []
        if self._line:
            data = self._line + data
            self._line = b""
        position, size = 0, len(data)
        while position < size:
            if self._remaining:
                position = self._take_data(data, position, pieces)
                continue
            limit = TRAILERS_LIMIT_BYTES - self._trailer_bytes + 2 if self._seen_last else LINE_LIMIT_BYTES
            line_end = data.find(b"\r\n", position, position + limit)
            if line_end < 0:
                self._keep_line(data[position:], limit)
                break
            line = data[position:line_end]
            position = line_end + 2
            if self._seen_last and line:
                self._skip_trailer(line)
                continue
            if self._seen_last:
                self.ended = True
                self.surplus = data[position:]
                break
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise BadChunk("chunk size is no hexadecimal number")
            length = int(match[1], 16)
            self._seen_last = length == 0
            self._remaining = length + 2 if length else 0
        return pieces

    def _take_data(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        """Take what is there of the current chunk and its line end; returns the new position."""
        if self._remaining > 2:  # noqa: PLR2004 - the CR LF behind the payload
            piece = data[position : position + self._remaining - 2]
            pieces.append(piece)
            self._remaining -= len(piece)
            position += len(piece)
        expected = b"\r\n"[2 - self._remaining :] if self._remaining <= 2 else b""  # noqa: PLR2004 - see above
        line_end = data[position : position + len(expected)]
        if not expected.startswith(line_end):
            raise BadChunk("chunk data longer than its size")
        self._remaining -= len(line_end)
        return position + len(line_end)

    def _keep_line(self, begun: bytes, limit: int) -> None:
        if len(begun) >= limit or b"\n" in begun:
            raise BadChunk("trailers too long" if self._seen_last else "chunk size line too long")
        self._line = begun

    def _skip_trailer(self, line: bytes) -> None:
        field = _TRAILER.fullmatch(line)
        if field is None or field[1].lower() in _NO_TRAILERS:
            raise BadChunk("a trailer is no field that may stand there")
        self._trailer_bytes += len(line) + 2


def frame(payload: bytes) -> bytes:
    """`payload` as one chunk; it must not be empty, which would be the end."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)
