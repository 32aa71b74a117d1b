"""Writes a stream that another replica may have to go on with: whole events only, and what they say is kept."""

from router.model import Endpoint
from router.proxy.head import ResponseHead
from router.proxy.hiding import HidingWriter
from router.proxy.paths import EndMark
from router.proxy.response_writer import OK, Sink
from router.streams.joined import Joined
from router.streams.kept import EVENT_LIMIT_BYTES, Kept, end_of_events, payloads


class FollowedWriter(HidingWriter):
    """One response that may be a stream to be continued.

    Args:
        kept: What it says is added to this.
        hides: The event that tells its usage goes no further.
        others: As of `ResponseWriter`.

    Attributes:
        kept: None once it is no stream that can be continued.
    """

    _joined: Joined | None = None
    _note = b""
    """Told before the first event that comes from another replica."""
    _partial = b""
    """The beginning of an event: what is cut there, the client never sees."""

    def __init__(
        self, sink: Sink, kept: Kept, *, hides: bool, http10: bool, keep_alive: bool, held_limit_bytes: int
    ) -> None:
        super().__init__(
            sink, http10=http10, keep_alive=keep_alive, end_mark=EndMark.DONE, held_limit_bytes=held_limit_bytes
        )
        self.kept: Kept | None = kept
        self.hides = hides

    def start(self, head: ResponseHead, extra_lines: bytes, *, end_marked: bool | None) -> None:
        """Take the first replica's head."""
        if not is_stream(head):
            self.kept = None
        super().start(head, extra_lines, end_marked=end_marked)

    def go_on(self, head: ResponseHead, endpoint: Endpoint, *, closing: bool) -> None:
        """Take the head of the replica that continues the stream."""
        assert self.kept is not None  # noqa: S101 - it is asked only where something was kept
        self._joined = Joined(self.kept, closing=closing)
        self._note = b": continued on %b\n" % endpoint.name.encode()
        self._partial = b""
        self.sent_bytes = 0  # each replica's own are counted
        self._watch(head, endpoint.end_marked)

    def body(self, data: bytes, *, framed: bool) -> None:
        """Pass on the events that `data` completes.

        Raises:
            BadChunk: They do not continue the stream.
        """
        kept, joined = self.kept, self._joined
        if kept is None and joined is None:
            super().body(data, framed=framed)
            return
        data = self._partial + data
        end = end_of_events(data)
        events, self._partial = data[:end], data[end:]
        if joined is not None:
            events = joined.feed(events)
            if events:
                events, self._note = self._note + events, b""
        elif kept is not None:
            for payload in payloads(events):
                kept.take(payload)
        if len(self._partial) > EVENT_LIMIT_BYTES and joined is None:
            self.kept = None
            events, self._partial = events + self._partial, b""
        if events:
            super().body(events, framed=False)

    def judged(self, status: int) -> int:
        """See `ResponseWriter`; the end mark may come without its blank line."""
        if self._partial and (self._end_mark is EndMark.NONE or self._partial.rstrip().endswith(b"[DONE]")):
            partial, self._partial = self._partial, b""
            super().body(partial, framed=False)
        return super().judged(status)


def is_stream(head: ResponseHead) -> bool:
    """Whether an answer is a stream whose events can be read."""
    return head.status == OK and head.is_event_stream and not head.coded and head.length is None
