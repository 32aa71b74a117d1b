"""Writes one response to one client: the head, the body in the client's framing, and an honest end.

The head is held until the first byte of the body, so that until then another replica can still be tried. JSON is held
whole (up to a limit): a client never gets half an object under a 200 (docs/faults.md A3). A stream that breaks after its
first byte ends with an error event and without the closing chunk: never clean, never a second response (A1, F1, F2).

The router adds comments and an error event only to an event stream whose bytes it can read. A stream that is compressed or
has a Content-Length passes untouched, and is judged by its framing alone.
"""

import re
from typing import Final, Protocol

import msgspec

from router.proxy import answers, stream_end
from router.proxy.chunked import LAST_CHUNK, frame
from router.proxy.head import BODILESS, ResponseHead
from router.proxy.paths import Dialect, EndMark
from router.proxy.quoted import Quoted

OK: Final = 200
CUT_OFF: Final = 0
"""What `ResponseWriter.judged` says of an answer that is not whole."""
KEEPALIVE: Final = b": keep-alive\n"
"""A comment of the event stream, without the blank line that would end an event: OpenAI's client for Go (3.42 and before)
takes that line for the end of an event without data, and fails on it."""
_EARLY_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
)
_TAIL_BYTES: Final = 64
"""Reads shorter than this are joined with what came before: the mark may be cut anywhere."""
_TAIL_LIMIT_BYTES: Final = 4096
_CHUNK_BORDER = re.compile(rb"\r\n[0-9A-Fa-f]{1,15}\r\n")
_DONE = re.compile(rb"data: ?\[DONE\]")
_TAIL_TELLS: Final = (EndMark.DONE, EndMark.NONE)
_BLANK_LINES = (b"\n\n", b"\n\r\n", b"\r\r")
_MARK_BYTES: Final = 32
"""No end mark is longer."""
_RESPONSES_ENDS = (b"response.completed", b"response.failed", b"response.incomplete")


class Sink(Protocol):
    """Where bytes for the client go."""

    def write(self, data: bytes) -> None:
        """Queue bytes."""


class ResponseWriter:
    """One response on its way to one client.

    Args:
        sink: The client's transport.
        http10: The client speaks HTTP/1.0: no chunks.
        keep_alive: The client wants to go on after this response.
        end_mark: What must stand at the end of an event stream of this path.
        held_limit_bytes: JSON larger than this is streamed rather than held.
        dialect: Of the router's own error events.
        choices: How many there are to be: several end one by one, and are followed, which needs reads without framing.
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
    _open = False
    """The router may write into the body."""
    _delimited = False
    _end_mark = EndMark.NONE
    _strict = False
    """Only the end mark will do."""
    _mark_seen = False
    _plain = False
    _watched = False
    """Its last bytes are kept, to be read at its end."""
    _tail_only = False
    """And nothing else is to be done with most reads."""
    _framed = False
    """The last read was whole chunks."""
    _before = b""
    _tail = b""
    _choices: stream_end.ChoiceTracker | None = None
    _quoted: Quoted | None = None
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
        choices: int = 1,
    ) -> None:
        self._sink = sink
        self._http10 = http10
        self._path_mark = end_mark
        self._expected = choices
        self._limit = held_limit_bytes
        self._dialect = dialect
        self._held: list[bytes] = []
        self.keep_alive = keep_alive

    def comment(self, extra_lines: bytes, text: bytes = KEEPALIVE) -> None:
        """Keep a silent stream's connection alive with a comment, where that does no harm; `text` is its whole line.

        Before any head of a replica this commits to a stream under a 200; after one, only an open stream gets comments,
        and only between two events.
        """
        lines = b""
        if not self.begun:
            if self._held:
                if not self._open:
                    return
                lines = b"".join(self._held)
                self._held = []
            else:
                lines = self._early_head(extra_lines)
            self.begun = self._early = True
        elif not (self._open and self._between_events()):
            return
        self._sink.write(lines + (frame(text) if self._chunks else text))

    def _early_head(self, extra_lines: bytes) -> bytes:
        self.is_stream = self._open = True
        self._chunks = not self._http10
        framing = b"transfer-encoding: chunked\r\n" if self._chunks else b""
        self.keep_alive = self.keep_alive and self._chunks
        return _EARLY_HEAD + extra_lines + framing + (b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")

    def start(self, head: ResponseHead, extra_lines: bytes, *, end_marked: bool | None) -> None:
        """Take the replica's head; nothing is sent yet.

        Args:
            head: The head.
            extra_lines: The router's own fields.
            end_marked: Whether the replica ends its streams with their path's mark; None if that is not known.
        """
        self._watch(head, end_marked)
        if self._early:
            # The client already has its 200: what is no stream becomes one error event.
            stream = head.is_event_stream and not head.coded
            self._quoted = None if stream else Quoted(head, self._dialect, self._limit)
            self._plain = False
            return
        self.is_stream = head.is_event_stream
        self._holding = head.is_json and not head.is_event_stream
        self._chunks = self._plain = False
        self._sized = head.length is not None
        self._open = self._watched and not self._sized
        self._unproven = [] if self._holding and not self._delimited and not head.coded else None
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

    def _watch(self, head: ResponseHead, end_marked: bool | None) -> None:  # noqa: FBT001 - as `start` has it
        """What is to be read of this answer on its way, and at its end."""
        self._before = self._tail = b""
        self._mark_seen = False
        self._delimited = head.chunked or head.length is not None
        self._watched = head.is_event_stream and not head.coded
        marked = self._watched and head.status == OK and end_marked is not False
        self._end_mark = self._path_mark if marked else EndMark.NONE
        self._strict = end_marked is True
        several = self._expected > 1 and self._end_mark is EndMark.DONE
        self._choices = stream_end.ChoiceTracker(self._expected) if several else None
        self._tail_only = self._watched and self._choices is None and self._end_mark in _TAIL_TELLS

    def body(self, data: bytes, *, framed: bool) -> None:
        """Pass on bytes of the body; `framed` when they are whole chunks, never the closing one."""
        if self._plain:
            self._framed = framed
            if self._tail_only and len(data) >= _TAIL_BYTES:
                self._before, self._tail = self._tail, data
            elif self._watched:
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
            self._quoted.add(body, framed=False)
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
            self._quoted.add(data, framed=framed)
            return
        self._framed = framed
        if self._watched:
            self._watch_for_end(data)
        if self._unproven is not None:
            self._unproven.append(data)
        if self._chunks and not framed:
            data = frame(data)
        self._held.append(data)
        self._held_bytes += len(data)
        if not self._holding or self._held_bytes > self._limit:
            self._flush()
            self._plain = True
            self._unproven = None  # it is on its way: proven or not, only its framing can tell its end any more

    def judged(self, status: int) -> int:
        """The status that a body which is over amounts to: the head's, that of the engine's own error, or `CUT_OFF`.

        A stream is whole with its path's end mark; without it, where the engine is not known to send one, if its framing
        ended it after every choice was finished. JSON without framing must parse (docs/faults.md F4).
        """
        if self._unproven is not None:
            try:
                msgspec.json.decode(b"".join(self._unproven))
            except msgspec.DecodeError:
                return CUT_OFF
        if not self._watched or self._quoted is not None or self._marked():
            return status
        payload = self._last_payload()
        error = stream_end.own_error(payload)
        if error:
            return error
        if self._end_mark is EndMark.NONE:
            return status
        if self._strict or not self._delimited or self._end_mark is not EndMark.DONE:
            return CUT_OFF
        done = self._choices.finished if self._choices is not None else stream_end.finished(payload)
        return status if done else CUT_OFF

    def _marked(self) -> bool:
        if self._end_mark is not EndMark.DONE:
            return self._mark_seen
        end = self._before[-_TAIL_BYTES:] + self._tail[-_TAIL_LIMIT_BYTES:]
        # Whole chunks pass with their framing, which may cut the mark.
        return _DONE.search(end) is not None or _DONE.search(_CHUNK_BORDER.sub(b"", end)) is not None

    def _last_payload(self) -> bytes:
        """The last two reads without the framing of chunks."""
        tail = self._tail[:-2] if self._framed else self._tail
        return _CHUNK_BORDER.sub(b"", self._before + tail)

    def _between_events(self) -> bool:
        return not self._tail or self._last_payload().endswith(_BLANK_LINES)

    def last_bytes(self) -> bytes:
        """The last bytes that came, before `end`: where an answer tells its usage."""
        return b"".join(self._held[-2:]) if self._held else self._before + self._tail

    def end(self) -> None:
        """End cleanly: send what is held, and the closing chunk if the client is given chunks."""
        if self._quoted is not None:
            event = self._quoted.event()
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
        if self._open and not (self._tail and stream_end.own_error(self._last_payload())):
            event = answers.error_event(code, message, self._dialect)
            if self._between_events():
                event = event.lstrip()  # a blank line there is an event without data to some clients: see KEEPALIVE
            self._sink.write(frame(event) if self._chunks else event)

    def _flush(self) -> None:
        data = b"".join(self._held)
        self._held = []
        self.begun = self.answered = True
        self.sent_bytes += len(data)
        self._sink.write(data)

    def _watch_for_end(self, data: bytes) -> None:
        if self._choices is not None:
            self._choices.feed(data)
        elif self._end_mark not in _TAIL_TELLS:
            window = self._tail[-_MARK_BYTES:] + data
            marks = _RESPONSES_ENDS if self._end_mark is EndMark.RESPONSES else (b"message_stop",)
            if any(mark in window for mark in marks):
                self._mark_seen = True
        if len(data) >= _TAIL_BYTES:
            self._before, self._tail = self._tail, data
        else:
            self._tail = (self._tail + data)[-_TAIL_LIMIT_BYTES:]
