"""PURE. How fast a replica reads prompts, learned from what the router sees of it.

A prompt's service begins when it is placed or when the replica's previous first token came, whichever is later, and ends
with its own first token; what is served is the part of the prompt that no cache held. The pace is the sum of those times
over the sum of those bytes, older ones fading.

A replica differs from its fleet by as much as its samples are evidence of it: otherwise chance makes one replica "the
fastest", and everything goes there. With the excess e of each sample over what the fleet's pace explains, and
t² = (Σe)² / Σe², a replica keeps 1 - c / t² of its difference, and nothing below c (the positive-part shrinkage of James and
Stein, 1961). So a first sample counts for nothing, later ones that agree with it ever more, and any number that scatters
about the fleet's pace stays near it.
"""

from dataclasses import dataclass
from typing import Final

FIRST_GUESS_S_PER_BYTE = 1 / 32_000
"""8,000 tokens of four bytes a second, until the first answer."""
OWN_FADE: Final = 0.95
"""Per prompt of one replica: about twenty are remembered. Chosen: a replica that becomes slow is to be seen within seconds."""
FLEET_FADE: Final = 0.99
"""Per prompt of the fleet: about a hundred are remembered. Chosen: it steadies the replicas' own paces."""
_EVIDENCE: Final = 2.0
"""c above, so that two samples that agree are not enough. Chosen: with 4, a replica three times slower than the others costs
1 % more in `bench/replay`; 1 and 2 cost nothing."""


@dataclass
class Pace:
    """Seconds and bytes served, fading with every prompt; of one replica or of a fleet."""

    fade: float
    seconds: float = FIRST_GUESS_S_PER_BYTE
    bytes: float = 1.0
    count: float = 0.0
    seconds2: float = 0.0
    seconds_bytes: float = 0.0
    bytes2: float = 0.0
    """Sums of squares and products, from which comes the scatter about any pace."""

    def note(self, seconds: float, uncached_bytes: float, weight: float) -> None:
        """One prompt was served; `weight` (0 to 1) says how certain its uncached bytes are."""
        fade = self.fade if weight == 1.0 else self.fade**weight
        self.seconds = self.seconds * fade + seconds * weight
        self.bytes = self.bytes * fade + uncached_bytes * weight
        self.count = self.count * fade + weight
        fade, weight = fade * fade, weight * weight
        self.seconds2 = self.seconds2 * fade + seconds * seconds * weight
        self.seconds_bytes = self.seconds_bytes * fade + seconds * uncached_bytes * weight
        self.bytes2 = self.bytes2 * fade + uncached_bytes * uncached_bytes * weight

    def halve(self) -> None:
        """What was learned says half as much as before: t² is half of what it was."""
        self.seconds /= 2
        self.bytes /= 2
        self.count /= 2
        self.seconds2 /= 2
        self.seconds_bytes /= 2
        self.bytes2 /= 2

    @property
    def s_per_byte(self) -> float:
        """The pace."""
        return self.seconds / self.bytes


def pooled(own: Pace, fleet: Pace) -> float:
    """Seconds per byte of one replica, drawn to its fleet's."""
    if not fleet.count:
        return FIRST_GUESS_S_PER_BYTE
    usual = fleet.s_per_byte
    if not own.count:
        return usual
    excess = own.seconds - usual * own.bytes
    scatter = own.seconds2 - 2 * usual * own.seconds_bytes + usual * usual * own.bytes2  # below 0 only by rounding
    kept = excess * excess - _EVIDENCE * max(0.0, scatter)
    return usual + kept / excess / own.bytes if kept > 0.0 else usual
