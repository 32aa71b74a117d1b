"""PURE. A stream of chat completions as Anthropic's events: bytes in, however they are cut, and the bytes of whole events out.

    message_start ping (content_block_start content_block_delta* content_block_stop)* message_delta message_stop

One block is open at a time. Of several tool calls the first one flows, the others wait for their turn: their pieces may come
mixed, and Anthropic's blocks follow each other. All that is kept is bounded.
"""

from typing import Any, Final

import msgspec

from common.wire.base import JsonObject
from router.messages.answer import start_of, told_by
from router.messages.completion import (
    Call,
    Choice,
    Completion,
    Function,
    Said,
    Usage,
    decode,
    stop_of,
    text_of,
    thought_of,
    usage_of,
)
from router.messages.request import Chat
from router.proxy import answers
from router.proxy.chunked import BadChunk
from router.proxy.paths import Dialect

EVENT_LIMIT_BYTES = 4 << 20
"""Of one event, and of what waits: a file in a tool's arguments is not larger."""
_UNKNOWN_ERROR: Final = 400
"""What an error that names no status counts as, as in `stream_end.py`."""
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_TEXT, _THINKING, _TOOL = "text", "thinking", "tool_use"


class _Waiting:
    """A call whose turn has not come."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []


class MessageStream:
    """One stream.

    Args:
        chat: The request that it answers.
        request_id: For names that the server does not give.

    Attributes:
        done: Its end mark came, or an error: what follows is not read.
        finished: It has told why it ends.
        error_status: What its own error stands for; 0 while there is none.
        usage: The event that told the usage.
    """

    def __init__(self, chat: Chat, request_id: str) -> None:
        self.done = False
        self.finished = False
        self.error_status = 0
        self.usage = b""
        self._chat = chat
        self._request_id = request_id
        self._line = b""
        self._data: list[bytes] = []
        self._is_error = False
        self._event_bytes = 0
        self._waiting_bytes = 0
        self._begun = False
        self._blocks = 0
        self._open = ""
        """The type of the open block."""
        self._member = ""
        self._calls = 0
        self._flowing = -1
        """The call that is told as it comes: the first one."""
        self._latest = -1
        self._waiting: dict[int, _Waiting] = {}
        self._last: Choice | None = None
        self._counted: Usage | None = None

    def feed(self, data: bytes) -> bytes:
        """The events that `data` completes.

        Raises:
            BadChunk: It is no stream of chat completions, or more of it would have to be kept than we do.
        """
        out: list[bytes] = []
        lines = (self._line + data).split(b"\n")
        self._line = lines.pop()
        for line in lines:
            self._take_line(line.removesuffix(b"\r"), out)
        if self._event_bytes + len(self._line) > EVENT_LIMIT_BYTES:
            raise BadChunk("an event of the stream is too large")
        return b"".join(out)

    def end(self) -> bytes:
        """What is still to be said once the stream is over: nothing after its mark, else its last events."""
        out: list[bytes] = []
        if not self.done:
            self._finish(out)
        return b"".join(out)

    def _take_line(self, line: bytes, out: list[bytes]) -> None:
        if self.done:
            return
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._event_bytes += len(line)
        elif line.startswith(b"event:"):
            self._is_error = line[6:].strip() == b"error"
        elif not line:
            payload = b"\n".join(self._data)
            self._data.clear()
            self._event_bytes = 0
            if payload == b"[DONE]":
                self._finish(out)
            elif payload:
                self._take_event(payload, out)
            self._is_error = False

    def _take_event(self, payload: bytes, out: list[bytes]) -> None:
        try:
            event = decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if self._is_error:
                self._fail(payload.decode("utf-8", "replace"), out)
                return
            raise BadChunk("an event of the stream is no chat completion") from error
        if event.error or self._is_error or "error" in (event.object, event.type):
            self._fail(msgspec.json.decode(payload), out)
            return
        self._begin_message(event, out)
        if event.usage is not None:
            self._counted, self.usage = event.usage, payload
        for choice in event.choices or ():
            if choice.index:
                continue  # nobody asked for a second one
            if choice.delta is not None:
                self._take_delta(choice.delta, out)
            if choice.finish_reason is not None:
                self.finished = True
                self._last = choice

    def _begin_message(self, completion: Completion, out: list[bytes]) -> None:
        if not self._begun:
            self._begun = True
            message = start_of(completion, self._chat, self._request_id)
            out += (_event("message_start", {"message": message}), _PING)

    def _take_delta(self, said: Said, out: list[bytes]) -> None:
        thought, member = thought_of(said)
        if thought:
            if self._open != _THINKING:
                self._begin(_THINKING, {"thinking": "", "signature": ""}, out)
                self._member = member
            self._say({"type": "thinking_delta", "thinking": thought}, out)
        text = text_of(said)
        if text:
            if self._open != _TEXT:
                self._begin(_TEXT, {"text": ""}, out)
            self._say({"type": "text_delta", "text": text}, out)
        for call in said.tool_calls or ():
            self._take_call(call, out)

    def _take_call(self, call: Call, out: list[bytes]) -> None:
        at = call.index
        if at is None:  # some servers do not number them: an id begins the next one
            at = self._latest + 1 if call.id or self._latest < 0 else self._latest
        self._latest = at
        function = call.function or Function()
        name, piece = function.name or "", function.arguments or ""
        if not isinstance(piece, str):
            piece = msgspec.json.encode(piece).decode() if isinstance(piece, dict) else ""
        if self._flowing < 0 and name and at not in self._waiting:
            self._flowing = at
            self._begin_call(call.id or "", name, out)
            name = ""
        if at == self._flowing:
            if self._open != _TOOL:
                raise BadChunk("a tool call goes on after it ended")
            if piece:
                self._say({"type": "input_json_delta", "partial_json": piece}, out)
            return
        waiting = self._waiting.setdefault(at, _Waiting())
        waiting.id = waiting.id or call.id or ""
        waiting.name = waiting.name or name
        waiting.arguments.append(piece)
        self._waiting_bytes += len(piece) + 64
        if self._waiting_bytes > EVENT_LIMIT_BYTES:
            raise BadChunk("the tool calls of the stream are too large")

    def _begin_call(self, given: str, name: str, out: list[bytes]) -> None:
        call_id = given or f"toolu_{self._request_id}_{self._calls}"
        self._calls += 1
        self._begin(_TOOL, {"id": call_id, "name": name, "input": {}}, out)

    def _begin(self, kind: str, members: JsonObject, out: list[bytes]) -> None:
        self._close(out)
        self._open = kind
        out.append(_event("content_block_start", {"index": self._blocks, "content_block": {"type": kind, **members}}))

    def _say(self, delta: dict[str, str], out: list[bytes]) -> None:
        out.append(_event("content_block_delta", {"index": self._blocks, "delta": delta}))

    def _close(self, out: list[bytes]) -> None:
        if not self._open:
            return
        if self._open == _THINKING:
            self._say({"type": "signature_delta", "signature": self._member}, out)
        out.append(_event("content_block_stop", {"index": self._blocks}))
        self._open = ""
        self._blocks += 1

    def _finish(self, out: list[bytes]) -> None:
        """Everything that is still open ends: the block, the calls that wait, the message."""
        self.done = True
        self._begin_message(Completion(), out)
        for at in sorted(self._waiting):
            call = self._waiting[at]
            if not call.name:
                raise BadChunk("a tool call has no name")
            self._begin_call(call.id, call.name, out)
            self._say({"type": "input_json_delta", "partial_json": "".join(call.arguments)}, out)
        self._waiting.clear()
        if not self._open and not self._blocks:
            self._begin(_TEXT, {"text": ""}, out)
        self._close(out)
        delta = stop_of(self._last, self._chat.stops, called=self._calls > 0)
        out.append(_event("message_delta", {"delta": delta, "usage": usage_of(self._counted)}))
        out.append(_event("message_stop", {}))

    def _fail(self, error: Any, out: list[bytes]) -> None:
        """The engine's own error: the last event."""
        self.done = True
        code, message = told_by(error)
        status = int(code) if code.isdecimal() and code.isascii() and 400 <= int(code) <= 599 else 0  # noqa: PLR2004
        self.error_status = status or _UNKNOWN_ERROR
        body = answers.error_body(status or 500, code, message or "the replica ended with an error", Dialect.ANTHROPIC)
        out.append(b"event: error\ndata: %b\n\n" % body)


def _event(name: str, members: JsonObject) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode({"type": name, **members}))
