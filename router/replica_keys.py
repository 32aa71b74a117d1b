"""PURE. Which replica is shown which key of its own (`replica_keys`, a static service's `api_key_file`).

Keys come from files of the router's own machine. A record says at most under which label its key is known, so that no
key is ever in the registry.
"""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field

from router.model import Replica


@dataclass(frozen=True, slots=True)
class ReplicaKeys:
    """What replicas want to see in `Authorization`.

    Args:
        static: By name of a static service.
        patterns: By label or name of a registered replica, or a pattern of either, in the file's order.
    """

    static: Mapping[str, str] = field(default_factory=dict, repr=False)
    patterns: Mapping[str, str] = field(default_factory=dict, repr=False)

    def of(self, replica: Replica) -> str | None:
        """The whole value of the header, or None. An exact name wins over a pattern, a label over a name."""
        if replica.static and replica.name in self.static:
            return self.static[replica.name]
        called = [name for name in (replica.hints.api_key_label, replica.name) if name is not None]
        for name in called:
            if name in self.patterns:
                return self.patterns[name]
        for name in called:
            for pattern, value in self.patterns.items():
                if fnmatch.fnmatchcase(name, pattern):
                    return value
        return None
