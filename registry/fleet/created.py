"""What was just created, and where: remembered until heartbeats tell of it, and longer for a call that is repeated."""

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field

from common.clock import Clock
from common.wire.replica import ReplicaInfo

REMEMBERED_S = 30.0
"""Long past the first heartbeat of a new replica's babysitter."""
ASKED_S = 600.0
"""A create call that is repeated within this time goes to the same node, whatever became of it (docs/faults.md E1)."""
MOST = 10_000


@dataclass(frozen=True, slots=True)
class NewReplica:
    """A replica that an agent has just made; `info` is what its request says of it, `at` when (monotonic)."""

    info: ReplicaInfo
    node: str
    at: float


@dataclass(slots=True)
class NewReplicas:
    """Create calls of the last minutes.

    Args:
        clock: Monotonic time.
    """

    clock: Clock
    _made: dict[str, NewReplica] = field(default_factory=dict)
    _asked: dict[str, tuple[str, float]] = field(default_factory=dict)

    def asks(self, request_id: str | None, node: str) -> None:
        """A create call is about to go to `node`, from which no answer may come."""
        if request_id is None:
            return
        now = self.clock.monotonic()
        if len(self._asked) >= MOST:
            self._asked = {key: it for key, it in self._asked.items() if now - it[1] <= ASKED_S}
        if len(self._asked) >= MOST:
            self._asked.clear()
        self._asked[request_id] = (node, now)

    def unasked(self, request_id: str | None) -> None:
        """The call did not reach its node."""
        if request_id is not None:
            self._asked.pop(request_id, None)

    def asked_before(self, request_id: str) -> str | None:
        """The node that such a call went to."""
        node, at = self._asked.get(request_id, (None, 0.0))
        return node if self.clock.monotonic() - at <= ASKED_S else None

    def remember(self, info: ReplicaInfo, *, node: str) -> None:
        """A replica was made: it is known from now on, whenever its babysitter will first be heard."""
        self._made = self.recent()
        if len(self._made) >= MOST:
            self._made.clear()
        self._made[info.replica_id] = NewReplica(info, node, self.clock.monotonic())

    def forget(self, replica_id: str) -> None:
        """It was stopped: it is for its agent alone to show now."""
        self._made.pop(replica_id, None)

    def recent(self) -> dict[str, NewReplica]:
        """What was made within the last seconds, by id."""
        now = self.clock.monotonic()
        return {key: it for key, it in self._made.items() if now - it.at <= REMEMBERED_S}

    def placed(self, reported: Container[str]) -> Counter[str]:
        """How many replicas of each node were made that no heartbeat has shown yet. `reported`: ids that one has."""
        return Counter(it.node for it in self.recent().values() if it.info.replica_id not in reported)
