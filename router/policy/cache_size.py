"""PURE. How much a replica's prefix cache holds, learned from which remembered prefixes turned out to be there.

Every prefix that was placed before has an age (bytes of other prompts since, see `prefix_index.py`). A cache that forgets
the least recently used holds what is younger than its size. Hits and misses are counted by age, in steps of a quarter
octave, older counts fading; the size is the age that parts them best. It starts at the limit, because a belief too small
hides the prefixes that would correct it, and comes down as misses are seen.

A replica borrows from what was seen at all of them, until it has seen enough itself.
"""

import math

_STEPS_PER_OCTAVE = 4
_FIRST_OCTAVE = 12
"""4 KiB: the smallest size that is told apart."""
_OCTAVES = 26
_STEPS = _STEPS_PER_OCTAVE * _OCTAVES
_FADE = 0.99
_SURE = 32.0
"""Own observations that outweigh what the fleet saw."""
_PRIOR = 0.05
"""Hits that every step is given beforehand: the belief starts large."""


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
    share = _SURE / (_SURE + own.seen)
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
