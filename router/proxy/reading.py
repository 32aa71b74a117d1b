"""The half of a client's connection that reads requests: heads and bodies, by their framing, within their sizes and times."""

from enum import Enum
from typing import Final

from router.proxy.chunked import BadChunk, Chunked
from router.proxy.engine import Engine
from router.proxy.head import HEAD_LIMIT_BYTES, BadHead, RequestHead
from router.proxy.sides import ClientConnection

_TOO_MUCH: Final = "the router holds too many request bodies; try again"


class Reading(Enum):
    """What the next bytes belong to."""

    HEAD = 0
    BODY = 1
    CHUNKED = 2
    NOTHING = 3
    """Refused: what still comes is dropped."""


class RequestReader(ClientConnection):
    """What `Downstream` is made on.

    Args:
        engine: The worker's shared state.
    """

    __slots__ = (
        "_body_remaining",
        "_body_until",
        "_buffer",
        "_chunked",
        "_deadline",
        "_engine",
        "_head",
        "_pieces",
        "_reading",
        "_reserved",
        "_streams_from",
    )

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reading = Reading.HEAD
        self._buffer = b""
        self._head: RequestHead | None = None
        self._pieces: list[bytes] = []
        self._body_remaining = 0
        self._body_until = 0.0
        self._reserved = 0
        self._chunked = Chunked()
        self._streams_from = 0
        """Once so much of the body has come, the request may go on without the rest; 0: never."""
        self._deadline = 0.0

    def dispatch(self, head: RequestHead, body: bytes, rest: bytes) -> None:
        """Hand a request on; `rest`: what came after it."""
        raise NotImplementedError

    def go_on_without_rest(self) -> None:
        """Hand a form on while the rest of it arrives, if it has named its model by now; else all of it is held."""
        raise NotImplementedError

    def refuse(self, status: int, code: str, message: str, path: bytes = b"") -> None:
        """Answer a request that is not taken, then drop what still comes of it for a moment, then close."""
        raise NotImplementedError

    def _feed(self, data: bytes) -> None:
        try:
            if self._reading is Reading.HEAD:
                self._feed_head(data)
            elif self._reading is Reading.BODY:
                self._feed_body(data)
            else:
                self._feed_chunks(data)
        except BadHead as bad_head:
            self.refuse(bad_head.status, "bad_request", str(bad_head), bad_head.path)
        except BadChunk as bad_chunk:
            self.refuse(400, "bad_request", str(bad_chunk))

    def _feed_head(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        else:
            self._deadline = self._engine.now() + self._engine.limits.head_timeout_s
        if data[:1] == b"\r":
            data = _without_blank_lines(data)
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if b"\n\n" in data or b"\n\r\n" in data:
                raise BadHead("lines must end with CR LF")
            if len(data) > HEAD_LIMIT_BYTES:
                raise BadHead("the request's head is too long", 431)
            self._buffer = data
            return
        self._buffer = b""
        if end > HEAD_LIMIT_BYTES:
            raise BadHead("the request's head is too long", 431)
        head = self._engine.heads.read(data[: end + 4])
        self._begin_body(head, data[end + 4 :])

    def _begin_body(self, head: RequestHead, rest: bytes) -> None:
        """Decide what follows the head, and take what is already there."""
        limits = self._engine.limits
        length = head.length
        if length == 0:
            self.dispatch(head, b"", rest)
            return
        self._head = head
        if length is not None and length > limits.max_body_bytes:
            raise BadHead(f"the body is larger than {limits.max_body_bytes} bytes", 413)
        if length == len(rest) and self._engine.body_bytes + length <= limits.max_bodies_bytes:
            self._head = None
            self.dispatch(head, rest, b"")
            return
        may = head.is_multipart and head.operation is not None and (length or 0) > limits.stream_uploads_bytes
        self._streams_from = limits.stream_uploads_bytes if may else 0
        # Only what has arrived is reserved (below): else sixteen heads that promise much would keep everybody out.
        if self._engine.body_bytes + (self._streams_from or length or 0) > limits.max_bodies_bytes:
            raise BadHead(_TOO_MUCH, 503)
        self._body_until = self._engine.now() + limits.body_timeout_s
        self._body_goes_on()
        if head.expects_continue and not rest and not head.http10:
            self.sink().write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if length is None:
            self._reading = Reading.CHUNKED
            self._chunked = Chunked()
            self._body_remaining = limits.max_body_bytes
        else:
            self._reading = Reading.BODY
            self._body_remaining = length
        if rest:
            self._feed(rest)

    def _body_goes_on(self) -> None:
        """It has its time anew, whatever the line's pace, within the time for all of it."""
        engine = self._engine
        self._deadline = min(engine.now() + engine.limits.body_idle_timeout_s, self._body_until)

    def _why_late(self, now: float) -> str:
        limits = self._engine.limits
        if now > self._body_until:
            return f"the request's body was not whole within {limits.body_timeout_s:g} s"
        return f"no byte of the request's body came for {limits.body_idle_timeout_s:g} s"

    def _feed_body(self, data: bytes) -> None:
        self._body_goes_on()
        remaining = self._body_remaining - len(data)
        self._body_remaining = remaining
        self._reserve(len(data) + min(remaining, 0))
        if remaining > 0:
            self._pieces.append(data)
            if 0 < self._streams_from <= self._reserved:
                self.go_on_without_rest()
        elif remaining == 0:
            self._pieces.append(data)
            self._body_complete(b"")
        else:
            self._pieces.append(data[:remaining])
            self._body_complete(data[remaining:])

    def _feed_chunks(self, data: bytes) -> None:
        pieces = self._chunked.payload(data)
        # Framing counts too: an endless chunk extension is no way around the limit (docs/faults.md R32).
        size = len(data)
        self._body_remaining -= size
        if self._body_remaining < 0:
            raise BadHead(f"the body is larger than {self._engine.limits.max_body_bytes} bytes", 413)
        self._reserve(size)
        self._body_goes_on()
        self._pieces += pieces
        if self._chunked.ended:
            self._body_complete(self._chunked.surplus)

    def _body_complete(self, rest: bytes) -> None:
        head = self._head
        assert head is not None  # noqa: S101 - a body follows a head
        pieces, self._pieces = self._pieces, []
        self._head = None
        self._release_body()
        self.dispatch(head, pieces[0] if len(pieces) == 1 else b"".join(pieces), rest)

    def _reserve(self, size: int) -> None:
        """Count body bytes against the worker's bound.

        Raises:
            BadHead: There is no room for them.
        """
        if self._engine.body_bytes + size > self._engine.limits.max_bodies_bytes:
            raise BadHead(_TOO_MUCH, 503)
        self._engine.body_bytes += size
        self._reserved += size

    def _release_body(self) -> None:
        self._engine.body_bytes -= self._reserved
        self._reserved = 0


def _without_blank_lines(data: bytes) -> bytes:
    """`data` without up to four empty lines in front of a request (RFC 9112 2.2)."""
    for _ in range(4):
        data = data.removeprefix(b"\r\n")
    return data
