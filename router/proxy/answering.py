"""The half of a request that faces its client: the router's own answers, the replica's response, and comments meanwhile."""

from math import inf

from router.dispatch import LocalAnswer
from router.proxy import answers
from router.proxy.engine import Engine
from router.proxy.head import ResponseHead
from router.proxy.hiding import HidingWriter
from router.proxy.paths import EndMark
from router.proxy.response_writer import KEEPALIVE, ResponseWriter
from router.proxy.sides import ClientConnection, ProxiedRequest
from router.proxy.translation import MessagesWriter


class AnsweredRequest(ProxiedRequest):
    """What `Exchange` is made on: whoever calls `answer` or `fail` needs to do nothing more, for they finish the request."""

    _engine: Engine
    _client: ClientConnection
    # These keep their defaults in most requests: class attributes cost nothing per request.
    _status = 0
    _writer: ResponseWriter | None = None
    _comment_at = inf
    _served_by = ""
    tells_more = False
    """There is more to tell of its way than who answered."""

    @property
    def wants_events(self) -> bool:
        """True when a good answer can only be an event stream, and the client takes one: not so for sound, say (W5)."""
        operation = self.head.operation
        streams = self.facts.stream and operation is not None and operation.end_mark is not EndMark.NONE
        return streams and self.head.takes_events

    @property
    def begun(self) -> bool:
        """True when the client has bytes of a replica's response."""
        return self._writer is not None and self._writer.answered

    def answer(self, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        """An answer in the router's own words."""
        self._status = status
        keep_alive = self.head.keep_alive and not self._engine.draining
        self._client.sink().write(
            answers.local_answer(
                status,
                body,
                keep_alive=keep_alive,
                head_only=self.head.method == b"HEAD",
                headers=((b"x-request-id", self.request_id), *headers),
                more_lines=self.head.cors,
            )
        )
        self.finish(keep_alive=keep_alive)

    def answer_preflight(self, lines: bytes) -> None:
        """A browser asks without the page's key whether the page may ask."""
        self._status = 204
        keep_alive = self.head.keep_alive and not self._engine.draining
        self._client.sink().write(answers.preflight_answer(lines, keep_alive=keep_alive))
        self.finish(keep_alive=keep_alive)

    def fail(self, answer: LocalAnswer) -> None:
        """Tell the client: by an answer if none has begun, else by an error event and an unclean end."""
        writer = self._writer
        if writer is None or not writer.begun:
            body = answers.error_body(answer.status, answer.code, answer.message, self.head.dialect, answer.more)
            self.answer(answer.status, body, *answer.headers)
            return
        writer.fail(answer.code, answer.message)
        if writer.unframed:
            self._client.abort()
        self.finish(keep_alive=False)

    def relay(self, head: ResponseHead, *, end_marked: bool | None) -> ResponseWriter:
        """Begin with a replica's response; see `ResponseWriter.start`."""
        writer = self._writer = self._writer or self._new_writer()
        writer.start(head, self._own_lines(), end_marked=end_marked)
        interval = self._engine.limits.sse_keepalive_s
        if head.is_event_stream and self.head.operation is not None and interval:
            self._comment_at = min(self._comment_at, self._engine.now() + interval)
        return writer

    def break_silence(self, now: float, last_byte_at: float) -> None:
        """A comment for the client, if nothing has come for long enough and it takes what is sent."""
        interval = self._engine.limits.sse_keepalive_s
        if last_byte_at + interval > now:
            self._comment_at = last_byte_at + interval
            return
        self.say("", now)

    def say(self, words: str, now: float) -> None:
        """A comment for the client, of these words or none."""
        self._comment_at = now + self._engine.limits.sse_keepalive_s
        if self._client.paused or (self._writer is None and not self.wants_events):
            return
        self._writer = self._writer or self._new_writer()
        self._writer.comment(self._own_lines(), b": %b\n" % words.encode() if words else KEEPALIVE)

    def _own_lines(self) -> bytes:
        """The response fields that are the router's own."""
        lines = b"x-request-id: %b\r\nx-content-type-options: nosniff\r\n%b" % (self.request_id, self.head.cors)
        if self.tells_more:
            lines += self._more_lines()
        if self._engine.limits.served_by and self._served_by:
            lines += b"x-served-by: %b\r\n" % self._served_by.encode()
        return lines

    def _more_lines(self) -> bytes:
        """Of a request that was not answered at the first try, or waited."""
        lines = b"x-attempts: %d\r\n" % self.dispatch.attempts if self.dispatch.attempts > 1 else b""
        return lines + b"x-queue-ms: %d\r\n" % (self.queued_s * 1e3) if self.queued_s else lines

    def _new_writer(self) -> ResponseWriter:
        head, sink, operation = self.head, self._client.sink(), self.head.operation
        keep_alive = head.keep_alive and not self._engine.draining
        limit = self._engine.limits.held_limit_bytes
        if self.translation is not None:
            return MessagesWriter(
                sink, self.translation, http10=head.http10, keep_alive=keep_alive, held_limit_bytes=limit
            )
        end_mark = operation.end_mark if operation is not None else EndMark.NONE
        # Each by its name: compiled, a call through a variable takes five times as long.
        if self.hides_usage:
            return HidingWriter(
                sink,
                http10=head.http10,
                keep_alive=keep_alive,
                end_mark=end_mark,
                held_limit_bytes=limit,
                dialect=head.dialect,
                choices=self.facts.choices,
            )
        return ResponseWriter(
            sink,
            http10=head.http10,
            keep_alive=keep_alive,
            end_mark=end_mark,
            held_limit_bytes=limit,
            dialect=head.dialect,
            choices=self.facts.choices,
        )
