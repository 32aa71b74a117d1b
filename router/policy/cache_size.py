"""PURE. How much a replica's prefix cache holds, learned from which remembered prefixes turned out to be there.

Every prefix that was placed before has an age (bytes of other prompts since, see `prefix_index.py`). A cache that forgets
the least recently used holds what is younger than its size. Hits and misses are counted by age, in steps of a quarter
octave, older counts fading; the size is the age that parts them best. It starts at the limit, because a belief too small
hides the prefixes that would correct it, and comes down as misses are seen.

A replica borrows from what was seen at all of them, until it has seen enough itself.
"""

import math
from typing import Final

_STEPS_PER_OCTAVE: Final = 4
"""Chosen: steps of 19 %, finer than what twice or half the size costs (see `_PRIOR`)."""
_FIRST_OCTAVE: Final = 12
"""4 KiB: the smallest size that is told apart."""
_OCTAVES: Final = 26
"""Up to 256 GiB of prompt text, more than any cache holds."""
_STEPS = _STEPS_PER_OCTAVE * _OCTAVES
_FADE: Final = 0.99
"""Per observation of a step, so that about a hundred are remembered. Chosen: enough to even out chance, few enough to follow a
cache that other users of the engine fill."""
_CONFIDENT_SAMPLES: Final = 32.0
"""So many own observations halve the weight of the fleet's. Chosen: eight prompts, for each gives up to four."""
_PRIOR: Final = 0.05
"""Hits that every step is given beforehand, 5 in all: the belief starts large, and a handful of misses brings it down. Chosen.
Too large costs little and corrects itself: with twice the true size the first token came 4 % later in `bench/replay`, with
half of it 9 % (docs/routing.md)."""


class Sizes:
    """Hits and misses by age, of one replica or of a fleet."""

    __slots__ = ("hits", "misses", "seen")

    def __init__(self) -> None:
        self.hits = [0.0] * _STEPS
        self.misses = [0.0] * _STEPS
        self.seen = 0.0

    def note(self, age_bytes: float, hit: float) -> None:
        """A prefix of that age was there (`hit` 1), was not (0), or something between."""
        step = _step(age_bytes)
        self.hits[step] = self.hits[step] * _FADE + hit
        self.misses[step] = self.misses[step] * _FADE + 1.0 - hit
        self.seen = self.seen * _FADE + 1.0


def learned_bytes(own: Sizes, fleet: Sizes, limit_bytes: float) -> float:
    """The size that explains best what was seen, at most `limit_bytes`."""
    share = _CONFIDENT_SAMPLES / (_CONFIDENT_SAMPLES + own.seen)
    # Wrongly taken as held: misses below the size. Wrongly taken as gone: hits above it.
    cost = sum(own.hits) + share * sum(fleet.hits) + _PRIOR * _STEPS
    best, least = 0, cost
    for step in range(_STEPS):
        cost += own.misses[step] + share * fleet.misses[step] - own.hits[step] - share * fleet.hits[step] - _PRIOR
        if cost <= least:
            best, least = step + 1, cost
    return min(limit_bytes, math.exp2(_FIRST_OCTAVE + best / _STEPS_PER_OCTAVE))


def _step(age_bytes: float) -> int:
    octaves = math.log2(max(age_bytes, 1.0)) - _FIRST_OCTAVE
    return min(max(int(octaves * _STEPS_PER_OCTAVE), 0), _STEPS - 1)
