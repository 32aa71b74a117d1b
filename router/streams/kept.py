"""PURE. What a stream of completions has said so far, read event by event as it passes, so that another replica can go on.

Tokens are counted as the pieces of text that came, unless the events tell their usage: vLLM, SGLang and llama.cpp send one
event for each token. Some tokens are no event (half of a letter, a speculative batch), so a count may be a few too small.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

TEXT_LIMIT_BYTES: Final = 256 << 10
"""Of the text kept; a longer answer is not continued."""
EVENT_LIMIT_BYTES = 1 << 20
"""Of one event that is not whole yet."""
HEAD = ("id", "created", "model", "system_fingerprint")
"""Members that are the same in every event of a stream."""
_THOUGHTS = ("reasoning_content", "reasoning")
_BLANKS = (b"\n\n", b"\r\n\r\n", b"\r\r")


def end_of_events(data: bytes) -> int:
    """Where the last whole event in `data` ends; 0 where none does."""
    return max([data.rfind(blank) + len(blank) for blank in _BLANKS if blank in data], default=0)


def payloads(events: bytes) -> Iterator[bytes]:
    """The data of each of `events`."""
    for line in events.splitlines():
        if line.startswith(b"data:"):
            yield line[5:].strip()


class Kept:
    """What one stream has said.

    Args:
        chat: It is one of chat completions, not of completions.

    Attributes:
        begun: An event came.
        head: The members of its first event that all others have alike, as they stood there.
        finished: Its `finish_reason` came.
        done: Its end mark came.
        usage: The latest that it told.
        thought_member: Under which name its reasoning came; empty while none did.
    """

    def __init__(self, *, chat: bool) -> None:
        self.chat = chat
        self.head: dict[str, Any] = {}
        self.finished = False
        self.done = False
        self.usage: dict[str, Any] | None = None
        self.thought_member = ""
        self.begun = False
        self._text = bytearray()
        self._thought = bytearray()
        self._pieces = 0
        self._thoughts = 0
        self._blank_pieces = 0
        """The latest pieces that were white space, and no more."""
        self._lost = False
        """It cannot be continued, whatever comes."""

    def take(self, payload: bytes) -> None:
        """One event's data, after which the client has it."""
        if payload == b"[DONE]":
            self.done = True
        if self._lost or self.done:
            return
        try:
            event = msgspec.json.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            event = None
        if not isinstance(event, dict) or event.get("error") or not isinstance(event.get("choices"), list):
            self._forget()
            return
        if not self.begun:
            self.begun = True
            self.head = {name: event[name] for name in HEAD if name in event}
        if isinstance(event.get("usage"), dict):
            self.usage = event["usage"]
        for choice in event["choices"]:
            self._take_choice(choice)
        if len(self._text) + len(self._thought) > TEXT_LIMIT_BYTES:
            self._forget()

    def _take_choice(self, choice: Any) -> None:
        said = choice.get("delta", choice) if isinstance(choice, dict) else None
        if not isinstance(said, dict) or said.get("tool_calls") or said.get("function_call") or choice.get("index"):
            self._forget()
            return
        for name in _THOUGHTS:
            thought = said.get(name)
            if isinstance(thought, str) and thought:
                self.thought_member = name
                self._thought += thought.encode()
                self._thoughts += 1
                break  # some engines send it under both names
        text = said.get("content" if self.chat else "text")
        if isinstance(text, str) and text:
            self._text += text.encode()
            self._pieces += 1
            self._blank_pieces = self._blank_pieces + 1 if text.isspace() else 0
        if choice.get("finish_reason") is not None:
            self.finished = True

    def _forget(self) -> None:
        self._lost = True
        self._text.clear()
        self._thought.clear()

    @property
    def can_go_on(self) -> bool:
        """True while another replica could say what follows; engines cannot go on in the middle of reasoning."""
        return not (self._lost or self.done) and (not self._thoughts or bool(self.text))

    @property
    def text(self) -> str:
        """What was said, without white space at its end: many chat templates strip that, and a model says it again."""
        return self._text.decode().rstrip()

    @property
    def blank(self) -> str:
        """That white space."""
        text = self._text.decode()
        return text[len(text.rstrip()) :]

    @property
    def thought(self) -> str:
        """The reasoning."""
        return self._thought.decode()

    @property
    def text_tokens(self) -> int:
        """Of `text`."""
        return self._pieces - self._blank_pieces

    @property
    def tokens(self) -> int:
        """Of text and reasoning: by the stream's own account where its events tell it, else by the pieces that came."""
        told = self.usage.get("completion_tokens") if self.usage is not None else None
        said = told if isinstance(told, int) and told >= self._pieces else self._pieces + self._thoughts
        return said - self._blank_pieces
