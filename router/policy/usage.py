"""PURE. What an answer's usage tells: of the replica's prefix cache, and of the answer's length."""

import re

TAIL_BYTES = 2048
"""The usage stands in an answer's last bytes."""
_CACHED = re.compile(rb'"(?:cached_tokens|cache_read_input_tokens)"\s*:\s*(\d{1,9})')
_PROMPT = re.compile(rb'"(?:prompt_tokens|input_tokens)"\s*:\s*(\d{1,9})')


_WRITTEN = re.compile(rb'"(?:completion_tokens|output_tokens)"\s*:\s*(\d{1,9})')


def cached_share(tail: bytes) -> float | None:
    """The share of the prompt's tokens that were cached, by the usage in `tail`; None when it does not say."""
    tail = tail[max(0, len(tail) - TAIL_BYTES) :]
    if b"cache" not in tail:
        return None
    cached, prompt = _CACHED.findall(tail), _PROMPT.findall(tail)
    if not cached or not prompt or not int(prompt[-1]):
        return None
    return min(int(cached[-1]) / int(prompt[-1]), 1.0)


def written_tokens(tail: bytes) -> int | None:
    """The tokens of the answer, by the usage in `tail`; None when it does not say."""
    written = _WRITTEN.findall(tail[max(0, len(tail) - TAIL_BYTES) :])
    return int(written[-1]) if written else None
