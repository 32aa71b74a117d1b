"""PURE. The events of a stream that continues another, as events of that one: its id, its role said once, its usage added up."""

from typing import Any

import msgspec

from router.body import decode_members
from router.proxy.chunked import BadChunk
from router.streams.kept import HEAD, Kept, payloads


class Joined:
    """What follows one seam.

    Args:
        kept: What was said before; what is said now is added to it.
        closing: Nothing is to be said any more, but the reason of the end if that did not come, and the usage.
    """

    def __init__(self, kept: Kept, *, closing: bool) -> None:
        self._kept = kept
        self._closing = closing
        self._ended = kept.finished
        self._blank = kept.blank
        self._tokens = kept.tokens
        self._text_tokens = kept.text_tokens
        usage = kept.usage or {}
        self._prompt_tokens = usage.get("prompt_tokens")

    def feed(self, events: bytes) -> bytes:
        """Whole events, as the client gets them.

        Raises:
            BadChunk: They are none of a stream of completions, or go back to reasoning.
        """
        return b"".join(map(self._event, payloads(events)))

    def _event(self, payload: bytes) -> bytes:
        if payload != b"[DONE]":
            try:
                members: dict[str, Any] = dict(decode_members(payload))
                if "error" not in members and not self._is_told(members):
                    return b""
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise BadChunk("an event of the stream is no completion") from error
            if "error" not in members:
                payload = msgspec.json.encode(members)
        self._kept.take(payload)
        return b"data: %b\n\n" % payload

    def _is_told(self, members: dict[str, Any]) -> bool:
        """Make an event the first stream's; False where that leaves nothing of it."""
        for name in HEAD:
            if name in self._kept.head:
                members[name] = self._kept.head[name]
            elif self._kept.head:
                members.pop(name, None)
        choices = msgspec.json.decode(members.get("choices", b"[]"))
        if not isinstance(choices, list):
            raise BadChunk("an event of the stream has no choices")
        told = [choice for choice in choices if self._choice_is_told(choice)]
        usage = msgspec.json.decode(members.get("usage", b"null"))
        if isinstance(usage, dict):
            members["usage"] = self._added(usage)
        if choices:
            members["choices"] = told
        return not choices or bool(told) or (self._closing and isinstance(usage, dict))

    def _choice_is_told(self, choice: Any) -> bool:
        if not isinstance(choice, dict):
            raise BadChunk("a choice of the stream is no object")
        said = choice.get("delta") if self._kept.chat else choice
        said = said if isinstance(said, dict) else {}
        member = "content" if self._kept.chat else "text"
        is_first = self._kept.chat and self._kept.begun and said.pop("role", None) is not None
        if self._kept.text and (said.get("reasoning_content") or said.get("reasoning")):
            raise BadChunk("the stream goes back to reasoning")
        if self._closing:
            if self._ended or choice.get("finish_reason") is None:
                return False
            self._ended = True
            choice["finish_reason"] = "length"
            if self._kept.chat:
                choice["delta"] = {}
            else:
                choice["text"] = ""
            return True
        text = said.get(member)
        if self._blank and isinstance(text, str) and text:
            said[member] = self._without_blank(text)
            is_first = True
        return choice.get("finish_reason") is not None or not is_first or any(said.get(name) for name in _NEWS)

    def _without_blank(self, text: str) -> str:
        """What follows the white space at the end of what was said, which is said once more."""
        same = 0
        while same < min(len(text), len(self._blank)) and text[same] == self._blank[same]:
            same += 1
        self._blank = self._blank[same:] if same == len(text) else ""
        return text[same:]

    def _added(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The prompt of the first request, and all that was said."""
        prompt, written = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
        if not isinstance(prompt, int) or not isinstance(written, int):
            return usage
        told = self._prompt_tokens
        prompt = told if isinstance(told, int) else max(0, prompt - self._text_tokens)
        written = self._tokens if self._closing else self._tokens + written
        usage = {**usage, "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
            usage["prompt_tokens_details"] = {**details, "cached_tokens": min(details["cached_tokens"], prompt)}
        return usage


_NEWS = ("content", "text", "reasoning_content", "reasoning", "tool_calls", "function_call")
