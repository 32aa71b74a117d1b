"""PURE. A streamed chat completion, piece by piece, and what it amounted to."""

import json
from dataclasses import dataclass, field
from typing import Any

from ctl.sse import ServerSentEvent
from ctl.views.words import duration

END_MARK = "[DONE]"


class BrokenStream(ValueError):
    """The stream carries an error, or something that is no completion."""


@dataclass(slots=True)
class ChatAnswer:
    """One answer as it grows. Instants are seconds of one monotonic clock."""

    began: float
    text: str = ""
    thoughts: str = ""
    finish_reason: str | None = None
    usage: dict[str, object] = field(default_factory=dict)
    pieces: int = 0
    first: float | None = None
    last: float | None = None
    done: bool = False

    def take(self, event: ServerSentEvent, now: float) -> tuple[str, str]:
        """What `event` adds, as (thoughts, text).

        Raises:
            BrokenStream: It is an error, or no completion.
        """
        if event.data == END_MARK:
            self.done = True
            return "", ""
        try:
            chunk = json.loads(event.data)
        except ValueError as error:
            raise BrokenStream(f"the stream holds no JSON: {event.data[:80]}") from error
        if not isinstance(chunk, dict):
            raise BrokenStream(f"the stream holds no completion: {event.data[:80]}")
        if chunk.get("error"):
            fault = chunk["error"]
            raise BrokenStream(str(fault.get("message", fault)) if isinstance(fault, dict) else str(fault))
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
        return self._add(chunk.get("choices") or [{}], now)

    def _add(self, choices: list[Any], now: float) -> tuple[str, str]:
        choice = choices[0] if isinstance(choices[0], dict) else {}
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        thought = str(delta.get("reasoning_content") or delta.get("reasoning") or "")
        piece = str(delta.get("content") or "")
        if thought or piece:
            self.first = now if self.first is None else self.first
            self.last = now
            self.pieces += 1
            self.thoughts += thought
            self.text += piece
        return thought, piece

    @property
    def tokens(self) -> int:
        """Tokens of the answer, as the server counts them, else pieces of the stream."""
        counted = self.usage.get("completion_tokens")
        return counted if isinstance(counted, int) else self.pieces

    @property
    def tokens_per_s(self) -> float | None:
        """Pace after the first piece."""
        if self.first is None or self.last is None or self.last <= self.first or self.tokens < 2:  # noqa: PLR2004 - no gap
            return None
        return (self.tokens - 1) / (self.last - self.first)

    def summary(self) -> str:
        """First token, pace and length, for a person."""
        if self.first is None:
            return "no text"
        pace = "" if self.tokens_per_s is None else f", {self.tokens_per_s:.1f} tokens/s"
        ended = "" if self.finish_reason in (None, "stop") else f", ended by {self.finish_reason}"
        return f"first token after {duration(self.first - self.began)}, {self.tokens} tokens{pace}{ended}"

    def to_json(self, model: str) -> dict[str, object]:
        """The answer as one document."""
        return {
            "model": model,
            "text": self.text,
            "reasoning": self.thoughts or None,
            "finish_reason": self.finish_reason,
            "usage": self.usage or None,
            "ttft_s": None if self.first is None else round(self.first - self.began, 4),
            "tokens": self.tokens,
            "tokens_per_s": None if self.tokens_per_s is None else round(self.tokens_per_s, 2),
        }
