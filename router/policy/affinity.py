"""PURE. The same key goes to the same replica: weighted rendezvous hashing.

Each candidate scores `-weight / ln(u)` with `u` a hash of key and endpoint in (0, 1); the greatest wins. When a
replica joins or leaves, only the keys that win or lose by it move (Thaler and Ravishankar, 1998; weights after
Schindelhauer and Schomaker, 2005). Hashing the name, not the id, keeps a key with a replica that restarted.

A key may stand for many clients: everybody behind one proxy has one address. So it holds only while its replica has not too
many requests: fewer than a quarter above the mean, or than two above it (Mirrokni, Thorup and Zadimoghaddam, 2018).
"""

import math
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final

from router.model import Endpoint

LOAD_FACTOR: Final = 1.25
SPARE_REQUESTS: Final = 2.0
_SCALE = 2.0**64


def pick(key: str, candidates: Sequence[Endpoint]) -> Endpoint:
    """The owner of `key` among `candidates` (at least one)."""
    if len(candidates) == 1:
        return candidates[0]
    return max(candidates, key=lambda endpoint: (score(key, endpoint), endpoint.name))


def score(key: str, endpoint: Endpoint) -> float:
    """How much `key` wants `endpoint`; the greatest wins."""
    digest = blake2b(f"{key}\0{endpoint.name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    u = (int.from_bytes(digest) + 0.5) / _SCALE
    return -endpoint.weight / math.log(u) if u < 1.0 else math.inf


def mean_per_weight(candidates: Sequence[Endpoint], in_flight: Callable[[Endpoint], int]) -> float:
    """Requests at `candidates` now, per weight."""
    weights = sum([endpoint.weight for endpoint in candidates])
    return sum([in_flight(endpoint) for endpoint in candidates]) / weights if weights else 0.0


def has_room(requests: int, mean: float) -> bool:
    """True while a replica with so many requests may hold its keys; `mean` is that of a replica of its weight."""
    return requests < max(LOAD_FACTOR * mean, mean + SPARE_REQUESTS)
