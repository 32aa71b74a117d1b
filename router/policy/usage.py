"""PURE. What an answer's end tells: its usage in tokens, and why it ended.

Each API counts in its own way, and the names of the members tell which it is:

- chat and completions: `prompt_tokens` is the whole prompt, `prompt_tokens_details.cached_tokens` the part that was cached;
- responses: `input_tokens` is the whole prompt, `input_tokens_details.cached_tokens` the part that was cached;
- messages: `input_tokens` is what was neither in the cache (`cache_read_input_tokens`) nor written to it by this request
  (`cache_creation_input_tokens`); the prompt is the sum of the three.
"""

from typing import Final

TAIL_BYTES: Final = 2048
"""The usage stands in an answer's last bytes (of a stream of messages, in its first event too)."""
UNTOLD: Final = -1
"""A count that the replica does not tell, or that is no count: negative, a fraction, a text, cut off, above `_DIGITS_MOST`."""
_DIGITS_MOST: Final = 9
_REASON_BYTES: Final = 32


class Usage:
    """Tokens, as the replica counts them, or `UNTOLD`.

    `prompt` is all of it, `cached` the part of it that was in the cache, `written` the answer with its `reasoning`.
    """

    def __init__(self, prompt: int, cached: int, written: int, reasoning: int) -> None:
        self.prompt = prompt
        self.cached = cached
        self.written = written
        self.reasoning = reasoning

    def cached_share(self) -> float | None:
        """The share of the prompt's tokens that were cached; None when that is not told."""
        return min(self.cached / self.prompt, 1.0) if self.cached >= 0 and self.prompt > 0 else None

    def add_first(self, first: "Usage") -> None:
        """Take what only a stream's first event told; this is the last that it told."""
        if self.prompt < 0:
            self.prompt, self.cached = first.prompt, first.cached


def usage_of(tail: bytes) -> Usage | None:
    """The usage in an answer's last bytes; None when they have none."""
    at = tail.rfind(b'"usage"', max(0, len(tail) - TAIL_BYTES))
    if at < 0:
        return None
    tail = tail[at:]
    prompt, written = _count(tail, b'"prompt_tokens"'), _count(tail, b'"completion_tokens"')
    cached = reasoning = UNTOLD
    if tail.find(b"_details") >= 0 or tail.find(b"cache") >= 0:  # most have neither
        cached, reasoning = _count(tail, b'"cached_tokens"'), _count(tail, b'"reasoning_tokens"')
    if written < 0:
        written = _count(tail, b'"output_tokens"')
    if prompt < 0:
        prompt, read = _count(tail, b'"input_tokens"'), _count(tail, b'"cache_read_input_tokens"')
        if prompt >= 0 and read >= 0:
            prompt, cached = prompt + read + max(_count(tail, b'"cache_creation_input_tokens"'), 0), read
    told = prompt >= 0 or cached >= 0 or written >= 0 or reasoning >= 0
    return Usage(prompt, cached, written, reasoning) if told else None


def finish_reason(tail: bytes) -> bytes:
    """Why the answer ended, in the words of its API (`stop`, `length`, `tool_calls`, `end_turn` …); empty when it does not say."""
    start = max(0, len(tail) - TAIL_BYTES)
    at = tail.rfind(b'_reason"', start)
    reason = _word(tail, at) if at >= 0 else b""
    if reason or at < 0:
        return reason
    at = tail.rfind(b'finish_reason"', start, at)  # vLLM has a `stop_reason` of null after it
    return _word(tail, at + len(b"finish")) if at >= 0 else b""


# By hand, with bytes as numbers: these run for every answer, compiled, where patterns took four times as long. `find` stands
# for `in`, which asks bytes first whether they are a number, and makes an exception of the answer.


def _count(tail: bytes, name: bytes) -> int:
    """The whole number that the first member `name` has; `UNTOLD` when there is none."""
    at = tail.find(name)
    if at < 0:
        return UNTOLD
    at = _value(tail, at + len(name))
    size = len(tail)
    first, count = at, 0
    while at < size and 48 <= tail[at] <= 57:  # noqa: PLR2004 - digits
        count = count * 10 + tail[at] - 48
        at += 1
        if at - first > _DIGITS_MOST:
            return UNTOLD
    if at == first:
        return UNTOLD
    while at < size and tail[at] <= 32:  # noqa: PLR2004 - blanks
        at += 1
    return count if at < size and (tail[at] == 44 or tail[at] == 125) else UNTOLD  # noqa: PLR2004 - a comma, a brace


def _word(tail: bytes, at: int) -> bytes:
    """The value of the member whose name ends with `_reason"` at `at`, if it is a word in small letters."""
    first = _value(tail, at + len(b'_reason"')) + 1
    end = tail.find(b'"', first, first + _REASON_BYTES + 1)
    if end <= first or tail[first - 1] != 34:  # noqa: PLR2004 - a quote
        return b""
    for byte in range(first, end):
        if not (97 <= tail[byte] <= 122 or tail[byte] == 95):  # noqa: PLR2004 - small letters, an underscore
            return b""
    return tail[first:end]


def _value(tail: bytes, at: int) -> int:
    """Where the value begins, behind the colon."""
    size = len(tail)
    while at < size and (tail[at] <= 32 or tail[at] == 58):  # noqa: PLR2004 - blanks, a colon
        at += 1
    return at
