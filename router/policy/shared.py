"""PURE. What the views of a worker's replicas have in common."""

from dataclasses import dataclass

from router.policy.cache_size import Sizes
from router.policy.elsewhere import Elsewhere
from router.policy.pace import Pace
from router.policy.writing import Writing


@dataclass
class Shared:
    """The pooled samples and the limits."""

    pace: Pace
    sizes: Sizes
    writing: Writing
    first_guess_bytes: float
    blocks_each: int
    elsewhere: Elsewhere | None
    read_ahead_s: float = 0.0
    """Reading that a replica gets ahead, before prompts for it wait in `line.py`; 0: it gets all at once."""
    unsettled: bool = False
    """True after a sample so early that it changes much: every replica's pace is to be taken anew."""
