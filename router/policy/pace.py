"""PURE. How fast a replica reads prompts, learned from what the router sees of it.

A prompt's service begins when it is placed or when the replica's previous first token came, whichever is later, and ends
with its own first token; what is served is the part of the prompt that no cache held. The pace is the sum of those times
over the sum of those bytes, older ones fading. A replica's pace is drawn to the fleet's, at first wholly and always a
little: otherwise chance makes one replica "the fastest", and everything goes there.
"""

from dataclasses import dataclass
from typing import Final

FIRST_GUESS_S_PER_BYTE = 1 / 32_000
"""8,000 tokens of four bytes a second, until the first answer."""
OWN_FADE: Final = 0.95
"""Per prompt of one replica: about twenty are remembered. Chosen: a replica that becomes slow is to be seen within seconds."""
FLEET_FADE: Final = 0.99
"""Per prompt of the fleet: about a hundred are remembered. Chosen: it steadies the replicas' own paces."""
_POOL_REQUESTS: Final = 2.0
"""Requests of the fleet's mean size that count as if each replica had served them at the fleet's pace."""


@dataclass
class Pace:
    """Seconds and bytes served, fading with every prompt; of one replica or of a fleet."""

    fade: float
    seconds: float = FIRST_GUESS_S_PER_BYTE
    bytes: float = 1.0
    count: float = 0.0

    def note(self, seconds: float, uncached_bytes: float, weight: float) -> None:
        """One prompt was served; `weight` (0 to 1) says how certain its uncached bytes are."""
        fade = self.fade if weight == 1.0 else self.fade**weight
        self.seconds = self.seconds * fade + seconds * weight
        self.bytes = self.bytes * fade + uncached_bytes * weight
        self.count = self.count * fade + weight

    @property
    def s_per_byte(self) -> float:
        """The pace."""
        return self.seconds / self.bytes


def pooled(own: Pace, fleet: Pace) -> float:
    """Seconds per byte of one replica, drawn to its fleet's."""
    if not fleet.count:
        return FIRST_GUESS_S_PER_BYTE
    pool_bytes = fleet.bytes / fleet.count * _POOL_REQUESTS
    return (own.seconds + fleet.s_per_byte * pool_bytes) / (own.bytes + pool_bytes)
