"""Writes one response to one client: the head, the body in the client's framing, and an honest end.

The head is held until the first byte of the body, so that until then another replica can still be tried. JSON is held
whole (up to a limit): a client never gets half an object under a 200 (FAILURES.md A3). A stream that breaks after its
first byte ends with an error event and without the closing chunk: never clean, never a second response (A1, 0.1, 0.2).
"""

import re
from typing import Protocol

import msgspec

from router.proxy import answers
from router.proxy.chunked import LAST_CHUNK, Chunked, frame
from router.proxy.head import BODILESS, ResponseHead
from router.proxy.paths import Dialect, EndMark

OK = 200
KEEPALIVE = b": keep-alive\n\n"
"""A comment of the event stream: every client that follows the specification passes over it."""
_EARLY_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
)
_TAIL_BYTES = 64
"""Reads shorter than this are joined with what came before: the mark may be cut anywhere."""
_TAIL_LIMIT_BYTES = 512
_CHUNK_BORDER = re.compile(rb"\r\n[0-9A-Fa-f]{1,15}\r\n")
_RESPONSES_ENDS = (b"response.completed", b"response.failed", b"response.incomplete")


class Sink(Protocol):
    """Where bytes for the client go."""

    def write(self, data: bytes) -> None:
        """Queue bytes."""


class Relay:
    """One response on its way to one client.

    Args:
        sink: The client's transport.
        http10: The client speaks HTTP/1.0: no chunks.
        keep_alive: The client wants to go on after this response.
        end_mark: What must stand at the end of an event stream of this path.
        held_limit_bytes: JSON larger than this is streamed rather than held.
        dialect: Of the router's own error events.
    """

    # Most of these keep their defaults in most responses: class attributes cost nothing per request.
    begun = False
    answered = False
    is_stream = False
    sent_bytes = 0
    _held_bytes = 0
    _holding = False
    _chunks = False
    _sized = False
    _early = False
    _mark_seen = False
    _plain = False
    _before = b""
    _tail = b""
    _quoted: list[bytes] | None = None
    _event_line = b""
    _unquote: Chunked | None = None
    _unproven: list[bytes] | None = None

    def __init__(
        self,
        sink: Sink,
        *,
        http10: bool,
        keep_alive: bool,
        end_mark: EndMark,
        held_limit_bytes: int,
        dialect: Dialect = Dialect.OPENAI,
    ) -> None:
        self._sink = sink
        self._http10 = http10
        self._end_mark = end_mark
        self._limit = held_limit_bytes
        self._dialect = dialect
        self._held: list[bytes] = []
        self.keep_alive = keep_alive

    def comment(self, extra_lines: bytes) -> None:
        """Keep a waiting stream's connection alive; the first time this commits to a stream under a 200."""
        lines = b""
        if not self.begun:
            self.begun = self._early = self.is_stream = True
            self._held = []
            self._chunks = not self._http10
            framing = b"transfer-encoding: chunked\r\n" if self._chunks else b""
            self.keep_alive = self.keep_alive and self._chunks
            end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
            lines = _EARLY_HEAD + extra_lines + framing + end
        self._sink.write(lines + (frame(KEEPALIVE) if self._chunks else KEEPALIVE))

    def start(self, head: ResponseHead, extra_lines: bytes) -> None:
        """Take the replica's head; `extra_lines` are the router's own fields. Nothing is sent yet."""
        self._before = self._tail = b""
        self._mark_seen = False
        if head.status != OK:
            self._end_mark = EndMark.NONE
        if self._early:
            # The client already has its 200: what is no stream becomes one error event.
            self._quoted = None if head.is_event_stream else []
            self._event_line = answers.event_line(self._dialect) if head.status != OK else b""
            self._plain = False
            self._unquote = Chunked() if head.chunked else None
            return
        self.is_stream = head.is_event_stream
        self._holding = head.is_json and not head.is_event_stream
        self._chunks = self._plain = False
        self._sized = head.length is not None
        self._unproven = [] if self._holding and not self._sized and not head.chunked else None
        lines = [head.lines, extra_lines]
        if head.status in BODILESS:
            pass
        elif head.length is not None:
            lines.append(b"content-length: %d\r\n" % head.length)
        elif self._http10:
            self.keep_alive = False
        else:
            self._chunks = True
            lines.append(b"transfer-encoding: chunked\r\n")
        if self.is_stream:
            lines.append(b"x-accel-buffering: no\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        elif self._http10:
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self._held = [b"".join(lines)]
        self._held_bytes = 0

    def body(self, data: bytes, *, framed: bool) -> None:
        """Pass on bytes of the body; `framed` when they are whole chunks, never the closing one."""
        if self._plain:
            if self._end_mark is EndMark.DONE and len(data) >= _TAIL_BYTES:
                self._before, self._tail = self._tail, data
            elif self._end_mark is not EndMark.NONE:
                self._watch_for_end(data)
            if self._chunks and not framed:
                data = frame(data)
            self.sent_bytes += len(data)
            self._sink.write(data)
        else:
            self._unusual_body(data, framed=framed)

    def whole(self, body: bytes) -> None:
        """The whole body at once: it has a length, and is no stream."""
        if self._quoted is not None:
            self._quoted.append(body)
            self.end()
            return
        data = self._held[0] + body
        self._held = []
        self.begun = self.answered = True
        self.sent_bytes = len(data)
        self._sink.write(data)

    def _unusual_body(self, data: bytes, *, framed: bool) -> None:
        """The first bytes, what is held whole, and what became an event."""
        if self._quoted is not None:
            self._quoted += self._unquote.payload(data) if framed and self._unquote is not None else [data]
            return
        if self.is_stream and self._end_mark is not EndMark.NONE:
            self._watch_for_end(data)
        if self._unproven is not None:
            self._unproven.append(data)
        if self._chunks and not framed:
            data = frame(data)
        self._held.append(data)
        self._held_bytes += len(data)
        if not self._holding or self._held_bytes > self._limit:
            self._flush()
            self._plain = self._unproven is None

    def complete(self) -> bool:
        """True when the body may count as whole: a stream has its path's end mark, unframed JSON parses (0.4)."""
        if self._unproven is not None and not self.answered:
            try:
                msgspec.json.decode(b"".join(self._unproven))
            except msgspec.DecodeError:
                return False
        if not self.is_stream or self._end_mark is EndMark.NONE:
            return True
        if self._end_mark is EndMark.DONE:
            end = self._before[-_TAIL_BYTES:] + self._tail[-_TAIL_LIMIT_BYTES:]
            if b"data: [DONE]" in end or b"data:[DONE]" in end:
                return True
            end = _CHUNK_BORDER.sub(b"", end)  # whole chunks pass with their framing, which may cut the mark
            return b"data: [DONE]" in end or b"data:[DONE]" in end
        return self._mark_seen

    def last_bytes(self) -> bytes:
        """The last bytes that came, before `end`: where an answer tells its usage."""
        return b"".join(self._held[-2:]) if self._held else self._before + self._tail

    def end(self) -> None:
        """End cleanly: send what is held, and the closing chunk if the client is given chunks."""
        if self._quoted is not None:
            event = self._event_line + b"data: " + b" ".join(b"".join(self._quoted).split()) + b"\n\n"
            self.keep_alive = False
            self._sink.write(frame(event) if self._chunks else event)
            return
        if self._chunks:
            self._held.append(LAST_CHUNK)
        if self._held:
            self._flush()

    @property
    def unframed(self) -> bool:
        """True when only the connection's end tells the client that the body is over (HTTP/1.0)."""
        return not self._chunks and not self._sized

    def fail(self, code: str, message: str) -> None:
        """Tell a client whose response has begun that it broke; the caller then closes without the closing chunk."""
        self.keep_alive = False
        if self.is_stream:
            event = answers.error_event(code, message, self._dialect)
            self._sink.write(frame(event) if self._chunks else event)

    def _flush(self) -> None:
        data = b"".join(self._held)
        self._held = []
        self.begun = self.answered = True
        self.sent_bytes += len(data)
        self._sink.write(data)

    def _watch_for_end(self, data: bytes) -> None:
        if self._end_mark is EndMark.DONE:
            if len(data) >= _TAIL_BYTES:
                self._before, self._tail = self._tail, data
            else:
                self._tail = (self._tail + data)[-_TAIL_LIMIT_BYTES:]
            return
        window = self._tail + data
        marks = _RESPONSES_ENDS if self._end_mark is EndMark.RESPONSES else (b"message_stop",)
        if any(mark in window for mark in marks):
            self._mark_seen = True
        self._tail = window[-_TAIL_LIMIT_BYTES:]
