"""How many records there are of each kind."""

from collections import Counter
from dataclasses import dataclass, field

from common.paced import paced
from registry.core.catalogue import Catalogue


@dataclass(slots=True)
class Census:
    """Records, counted."""

    statuses: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    stale: int = 0
    suspect: int = 0


async def census(catalogue: Catalogue) -> Census:
    """Count them."""
    counted = Census()
    async for entry in paced(list(catalogue)):
        instance = entry.instance
        counted.statuses[instance.status] += 1
        counted.hosts[instance.registration.host] += 1
        counted.stale += instance.stale
        counted.suspect += instance.suspect
    return counted
