"""PURE. A response that is no event stream, for a client that has an event stream's head already: it becomes one event.

JSON, mostly an error, is quoted. A response that cannot stand in an event (compressed, no JSON, too large) becomes an error.
"""

from router.proxy import answers
from router.proxy.chunked import Chunked
from router.proxy.head import ResponseHead
from router.proxy.paths import Dialect

OK = 200


class Quoted:
    """One such answer.

    Args:
        head: Its head.
        dialect: Of the stream's error events.
        limit_bytes: A larger answer is not quoted.
    """

    def __init__(self, head: ResponseHead, dialect: Dialect, limit_bytes: int) -> None:
        self._dialect = dialect
        self._event_line = answers.event_line(dialect) if head.status != OK else b""
        self._unframe = Chunked() if head.chunked else None
        self._bytes_allowed = -1 if head.coded or not head.is_json else limit_bytes
        self._pieces: list[bytes] = []

    def add(self, data: bytes, *, framed: bool) -> None:
        """Take bytes of the body; `framed` when they are whole chunks."""
        self._bytes_allowed -= len(data)
        if self._bytes_allowed < 0:
            self._pieces.clear()
        else:
            self._pieces += self._unframe.payload(data) if framed and self._unframe is not None else [data]

    def event(self) -> bytes:
        """The event, at the end of the answer."""
        if self._bytes_allowed < 0:
            code, message = "upstream_no_stream", "the replica's answer was no event stream"
            return answers.error_event(code, message, self._dialect).lstrip()
        return self._event_line + b"data: " + b" ".join(b"".join(self._pieces).split()) + b"\n\n"
