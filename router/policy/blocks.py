"""PURE. A prompt as a chain of hashed blocks, so that two prompts with an equal beginning have equal first blocks.

The hash runs over the JSON text of the messages as the client wrote it: no tokenizer, no decoding. Block `i` ends at
`ENDS[i]` bytes, and its hash covers everything before that end (each block's hash seeds the next), so one equal hash
means an equal beginning. Blocks are 512 bytes long up to 16 KB and then a sixteenth of where they stand, in powers of
two: a match is known to about 6 % of its length, and a 1 MB prompt has 128 blocks. A rest shorter than a block counts
for nothing. The hash (xxh3, 64 bits) is the same in every process; a collision costs a cache hit, nothing else.
"""

from bisect import bisect_right
from typing import Any, Final

import xxhash

SMALLEST_BYTES: Final = 512
_LONGEST_BYTES: Final = 8 << 20
_SHARE: Final = 16


def _ends() -> tuple[int, ...]:
    ends = [SMALLEST_BYTES]
    size = SMALLEST_BYTES
    while ends[-1] < _LONGEST_BYTES:
        if ends[-1] >= 2 * size * _SHARE:
            size *= 2
        ends.append(ends[-1] + size)
    return tuple(ends)


ENDS = _ends()
"""Where each block ends, in bytes from the prompt's beginning."""
_SPANS = tuple(zip((0, *ENDS), ENDS, strict=False))
_digest = xxhash.xxh3_64_intdigest


def seed_of(*parts: Any) -> int:
    """What stands before the prompt (the model, the tools, a system field) as one number."""
    seed = 0
    for part in parts:
        seed = _digest(part, seed)
    return seed


def chain(text: Any, seed: int) -> tuple[int, ...]:
    """The hashes of the whole blocks of `text` (bytes-like)."""
    if len(text) < SMALLEST_BYTES:
        return ()
    view = memoryview(text)
    hashes = []
    for start, end in _SPANS[: bisect_right(ENDS, len(text))]:
        seed = _digest(view[start:end], seed)
        hashes.append(seed)
    return tuple(hashes)


def bytes_of(count: int) -> int:
    """Bytes that the first `count` blocks cover."""
    return ENDS[count - 1] if count else 0
