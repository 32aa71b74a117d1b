"""A request of Anthropic's Messages API on its way to an engine that has only chat completions, and the answer on its way back.

Where an engine has the call itself, the request stays as it is, and so does the answer, byte for byte.
"""

from typing import Final

from router.facts import BadBody
from router.messages.answer import Untranslatable, to_error, to_message
from router.messages.request import Chat, to_chat
from router.messages.stream import MessageStream
from router.proxy import answers
from router.proxy.chunked import BadChunk
from router.proxy.head import RequestHead, ResponseHead
from router.proxy.headers import as_chat, retyped
from router.proxy.paths import PROXIED, Dialect, EndMark
from router.proxy.response_writer import CUT_OFF, OK, ResponseWriter, Sink

MESSAGES = PROXIED[b"/v1/messages"]
COUNT_TOKENS = PROXIED[b"/v1/messages/count_tokens"]
NO_SUCH_CALL = frozenset({404, 405, 501})
"""What servers answer to a path that they do not have."""
_CHAT: Final = b"/v1/chat/completions"
_CLIENT_ERROR, _BAD_GATEWAY = 400, 502
_BAD_GATEWAY_TEXT: Final = b"502 Bad Gateway\r\n"


class Translation:
    """One request's; made once, used for each replica that needs it.

    Args:
        counts: It is the call that counts tokens, which has no counterpart.
        request_id: The request's.

    Attributes:
        active: The replica that is asked gets chat completions.
        head: The translated head, once it is made; the body stands in `chat`.
        status: The answer's own, where it is not the replica's.
        tried: Ids of replicas that turned out not to have the call.
        refused: Nobody can be asked; the client is told so.
    """

    def __init__(self, request_id: bytes, *, counts: bool) -> None:
        self.active = False
        self.counts = counts
        self.request_id = request_id.decode()
        self.head: RequestHead | None = None
        self.chat: Chat | None = None
        self.status = 0
        self.tried: tuple[str, ...] = ()
        self.refused = False

    def make(self, head: RequestHead, body: bytes) -> int:
        """Translate, unless it is done already; returns how many bytes more are kept.

        Raises:
            BadBody: It has what cannot be translated.
        """
        if self.chat is not None:
            return 0
        if head.is_multipart or head.is_urlencoded:
            raise BadBody("send Content-Type: application/json")
        self.chat = to_chat(body)
        head = head.copied()
        head.path, head.query, head.operation = _CHAT, b"", PROXIED[_CHAT]
        head.forwarded = head.forwarded_for_stream = as_chat(head.forwarded)
        self.head = head
        return len(self.chat.body)

    @property
    def sent(self) -> tuple[RequestHead, bytes] | None:
        """What the replica that is asked gets; None where that is the request itself."""
        return (self.head, self.chat.body) if self.active and self.head is not None and self.chat is not None else None

    @property
    def bytes_kept(self) -> int:
        """What it holds beside the request."""
        return len(self.chat.body) if self.chat is not None else 0


class MessagesWriter(ResponseWriter):
    """Writes the answer to one request of the Messages API, translated where its replica was asked for a chat.

    Args:
        translation: The request's.
        others: As of `ResponseWriter`.
    """

    _chat: Chat | None = None
    """Set while an answer is translated."""
    _stream: MessageStream | None = None
    _upstream: ResponseHead | None = None
    _marked_end: bool | None = None
    _more_lines = b""
    _answer_bytes = 0
    _message = b""
    """What is still to be sent once the answer is over."""
    _final_status = 0

    def __init__(
        self,
        sink: Sink,
        translation: Translation,
        *,
        http10: bool,
        keep_alive: bool,
        held_limit_bytes: int,
    ) -> None:
        super().__init__(
            sink,
            http10=http10,
            keep_alive=keep_alive,
            end_mark=EndMark.MESSAGES,
            held_limit_bytes=held_limit_bytes,
            dialect=Dialect.ANTHROPIC,
        )
        self._translation = translation
        self._most_bytes = held_limit_bytes
        self._pieces: list[bytes] = []

    def start(self, head: ResponseHead, extra_lines: bytes, *, end_marked: bool | None) -> None:
        """Take the replica's head; a whole answer gets its own when it is there."""
        translation = self._translation
        self._chat = translation.chat if translation.active else None
        self._stream = None
        translation.status = 0
        if self._chat is None:
            super().start(head, extra_lines, end_marked=end_marked)
            return
        self._upstream, self._marked_end, self._more_lines = head, end_marked, extra_lines
        self._pieces, self._answer_bytes, self._message = [], 0, b""
        if head.status == OK and head.is_event_stream and not head.coded:
            self._stream = MessageStream(self._chat, translation.request_id)
            events = _head(OK, retyped(head, head.reason_line, b"text/event-stream; charset=utf-8"))
            events.chunked = events.is_event_stream = True
            super().start(events, extra_lines, end_marked=False)

    def body(self, data: bytes, *, framed: bool) -> None:
        """Pass on bytes of the body, or the events that they complete.

        Raises:
            BadChunk: They are no stream of chat completions.
        """
        if self._chat is None:
            super().body(data, framed=framed)
        elif self._stream is not None:
            events = self._stream.feed(data)
            if events:
                super().body(events, framed=False)
        else:
            self._answer_bytes += len(data)
            if self._answer_bytes <= self._most_bytes:
                self._pieces.append(data)
            else:
                self._pieces.clear()

    def judged(self, status: int) -> int:
        """The status that a body which is over amounts to, or `CUT_OFF`; the message is made of it here."""
        head, stream = self._upstream, self._stream
        if self._chat is None or head is None:
            return super().judged(status)
        delimited = head.chunked or head.length is not None
        if stream is not None:
            if not (stream.done or (stream.finished and delimited and self._marked_end is not True)):
                return CUT_OFF
            try:
                self._message = stream.end()
            except BadChunk:
                return CUT_OFF
            return stream.error_status or status
        try:
            self._message = self._translated(head, status)
        except Untranslatable as error:
            if not delimited:
                return CUT_OFF  # its end is not proven, and it is not whole
            status = _BAD_GATEWAY
            self._message = answers.error_body(status, "upstream_untranslatable", str(error), Dialect.ANTHROPIC)
        self._translation.status = self._final_status = status
        return status

    def _translated(self, head: ResponseHead, status: int) -> bytes:
        content = b"".join(self._pieces)
        if head.coded or self._answer_bytes > self._most_bytes:
            raise Untranslatable("the replica's answer is compressed, or larger than can be translated")
        if status >= _CLIENT_ERROR:
            return to_error(status, content)
        if status != OK or self._chat is None:
            raise Untranslatable(f"the replica answered {status}")
        return to_message(content, self._chat, self._translation.request_id)

    def last_bytes(self) -> bytes:
        """Where the answer tells its usage, in the replica's own words."""
        if self._chat is None:
            return super().last_bytes()
        return self._stream.usage if self._stream is not None else b"".join(self._pieces)

    def end(self) -> None:
        """End cleanly: send what is held."""
        head = self._upstream
        if self._stream is not None:
            if self._message:
                super().body(self._message, framed=False)
        elif self._chat is not None and head is not None:
            message, status = self._message, self._final_status
            status_text = head.reason_line if status == head.status else _BAD_GATEWAY_TEXT
            whole = _head(status, retyped(head, status_text, b"application/json"))
            whole.length, whole.is_json = len(message), True
            super().start(whole, self._more_lines, end_marked=None)
            super().body(message, framed=False)
        super().end()


def _head(status: int, lines: bytes) -> ResponseHead:
    return ResponseHead(status, b"", [], http10=False, keep_alive=True, lines=lines)
