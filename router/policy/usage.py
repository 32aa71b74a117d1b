"""PURE. What an answer's end tells: its usage in tokens, and why it ended.

Each API counts in its own way, and the names of the members tell which it is:

- chat and completions: `prompt_tokens` is the whole prompt, `prompt_tokens_details.cached_tokens` the part that was cached;
- responses: `input_tokens` is the whole prompt, `input_tokens_details.cached_tokens` the part that was cached;
- messages: `input_tokens` is what was neither in the cache (`cache_read_input_tokens`) nor written to it by this request
  (`cache_creation_input_tokens`); the prompt is the sum of the three.
"""

import re
from typing import NamedTuple

TAIL_BYTES = 2048
"""The usage stands in an answer's last bytes (of a stream of messages, in its first event too)."""
_COUNTS = re.compile(
    rb'"(prompt|completion|input|output|cached|reasoning|cache_read_input|cache_creation_input)_tokens"\s*:\s*(\d{1,9})'
)
_REASON = re.compile(rb'_reason"\s*:\s*"([a-z_]{1,32})"')


class Usage(NamedTuple):
    """Tokens, as the replica counts them; None where it does not say.

    `prompt` is all of it, `cached` the part of it that was in the cache, `written` the answer with its `reasoning`.
    """

    prompt: int | None
    cached: int | None
    written: int | None
    reasoning: int | None

    @property
    def cached_share(self) -> float | None:
        """The share of the prompt's tokens that were cached."""
        return min(self.cached / self.prompt, 1.0) if self.cached is not None and self.prompt else None

    def after(self, first: "Usage") -> "Usage":
        """This, the last that a stream told, with what only its first event said."""
        prompt, cached = (first.prompt, first.cached) if self.prompt is None else (self.prompt, self.cached)
        return Usage(prompt, cached, self.written, self.reasoning)


def usage_of(tail: bytes) -> Usage | None:
    """The usage in an answer's last bytes; None when they have none."""
    at = tail.rfind(b'"usage"', max(0, len(tail) - TAIL_BYTES))
    if at < 0:
        return None
    told: dict[bytes, bytes] = dict(_COUNTS.findall(tail, at))
    if not told:
        return None
    written = _count(told, b"completion" if b"completion" in told else b"output")
    prompt, cached = _count(told, b"prompt"), _count(told, b"cached")
    if prompt is None:
        prompt, read = _count(told, b"input"), _count(told, b"cache_read_input")
        if prompt is not None and read is not None:
            prompt, cached = prompt + read + (_count(told, b"cache_creation_input") or 0), read
    return Usage(prompt, cached, written, _count(told, b"reasoning"))


def _count(told: dict[bytes, bytes], name: bytes) -> int | None:
    count = told.get(name)
    return None if count is None else int(count)


def finish_reason(tail: bytes) -> str | None:
    """Why the answer ended, in the words of its API (`stop`, `length`, `tool_calls`, `end_turn` …); None when it does not say."""
    at = tail.rfind(b'_reason":', max(0, len(tail) - TAIL_BYTES))
    told = _REASON.match(tail, at) if at >= 0 else None
    if told is None and at >= 0:  # vLLM has a `stop_reason` of null after it
        told = _REASON.match(tail, tail.rfind(b'finish_reason":', 0, at) + len(b"finish"))
    return told[1].decode() if told else None
