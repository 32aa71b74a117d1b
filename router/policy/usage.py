"""PURE. What an answer's usage tells: of the replica's prefix cache, and of the answer's length.

Each API counts in its own way, and the names of the members tell which it is:

- chat and completions: `prompt_tokens` is the whole prompt, `prompt_tokens_details.cached_tokens` the part that was cached;
- responses: `input_tokens` is the whole prompt, `input_tokens_details.cached_tokens` the part that was cached;
- messages: `input_tokens` is what was neither in the cache (`cache_read_input_tokens`) nor written to it by this request
  (`cache_creation_input_tokens`); the prompt is the sum of the three.
"""

import re

TAIL_BYTES = 2048
"""The usage stands in an answer's last bytes (of a stream of messages, in its first event too)."""
_COUNT = rb'"\s*:\s*(\d{1,9})'
_PROMPT = re.compile(rb'"prompt_tokens' + _COUNT)
_INPUT = re.compile(rb'"input_tokens' + _COUNT)
_CACHED = re.compile(rb'"cached_tokens' + _COUNT)
_CACHE_READ = re.compile(rb'"cache_read_input_tokens' + _COUNT)
_CACHE_WRITTEN = re.compile(rb'"cache_creation_input_tokens' + _COUNT)
_WRITTEN = re.compile(rb'"(?:completion_tokens|output_tokens)' + _COUNT)


def cached_share(tail: bytes) -> float | None:
    """The share of the prompt's tokens that were cached, by the usage in `tail`; None when it does not say."""
    tail = tail[max(0, len(tail) - TAIL_BYTES) :]
    if b"cache" not in tail:
        return None
    prompt = _last(_PROMPT, tail)
    if prompt is None:
        prompt = _last(_INPUT, tail)
        read = _last(_CACHE_READ, tail)
        if read is not None and prompt is not None:
            return _share(read, prompt + read + (_last(_CACHE_WRITTEN, tail) or 0))
    return _share(_last(_CACHED, tail), prompt)


def written_tokens(tail: bytes) -> int | None:
    """The tokens of the answer, by the usage in `tail`; None when it does not say."""
    return _last(_WRITTEN, tail[max(0, len(tail) - TAIL_BYTES) :])


def _share(cached: int | None, prompt: int | None) -> float | None:
    return min(cached / prompt, 1.0) if cached is not None and prompt else None


def _last(member: re.Pattern[bytes], tail: bytes) -> int | None:
    counts = member.findall(tail)
    return int(counts[-1]) if counts else None
