"""PURE. What a member of a group makes of the others, by how their babysitters answer (docs/adr/0015).

The leader's record is out within two seconds of a death: two looks of at most half a second, a third of a second apart, and
what a heartbeat takes. A babysitter that is started again adopts its server; it has ten seconds for that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from common.wire.group import BROKEN, GroupMember
from common.wire.words import ReplicaStatus

MEMBERS = "members.json"
"""In a replica's directory: all members of its group, by rank."""
LOOK_S = 0.3
LOOK_TIMEOUT_S = 0.5
AWAY_AFTER = 2
"""Looks in a row without an answer."""
LOST_S = 10.0
JOINED_WITHIN_S = 120.0
"""Until the first answer: its agent may have many others to start."""
UP = frozenset({"healthy", "unregistered"})
"""How a babysitter calls a server that is ready (`GET /health`); what follows are its words for one that will not be again."""
OVER = frozenset({ReplicaStatus.FAILED.value, ReplicaStatus.STOPPED.value})
STRANGER = "stranger"
"""Another replica answers at a member's address."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of another member: its babysitter's last word, None before the first, and `misses` since then.

    `since`: when the first of these ended, or when we began to look.
    """

    since: float
    status: str | None = None
    misses: int = 0

    def after(self, word: str | None, now: float) -> "Seen":
        """With one look more; `word` None: no answer."""
        if word is not None:
            return Seen(now, word)
        since = now if self.status is not None and not self.misses else self.since
        return replace(self, since=since, misses=self.misses + 1)


@dataclass(slots=True)
class Outlook:
    """A member's view of its group.

    Args:
        members: All of them, by rank.
        rank: Its own; 0 leads. The leader looks at all others, they at it.
        began_at: Monotonic seconds, as all moments.
    """

    members: Sequence[GroupMember]
    rank: int
    began_at: float
    _seen: dict[int, Seen] = field(default_factory=dict)

    @property
    def others(self) -> Sequence[GroupMember]:
        """Those that it looks at."""
        return self.members[:1] if self.rank else self.members[1:]

    def saw(self, words: Mapping[int, str | None], now: float) -> None:
        """What each of them answered, by rank."""
        for rank, word in words.items():
            self._seen[rank] = self._of(rank).after(word, now)

    def away(self) -> str | None:
        """Why the leader cannot serve now; None: all others are up. A follower needs nobody for its work to go on."""
        for one in self.others if not self.rank else ():
            why = _away(self._of(one.rank))
            if why is not None:
                return f"{_who(one)} {why}"
        return None

    def broken(self, now: float) -> str | None:
        """Why the group will never be whole again."""
        for one in self.others:
            why = _lost(self._of(one.rank), now, leads=not self.rank)
            if why is not None:
                return f"{BROKEN}: {_who(one)} {why}"
        return None

    def _of(self, rank: int) -> Seen:
        return self._seen.get(rank) or Seen(self.began_at)


def _away(seen: Seen) -> str | None:
    if seen.status is None:
        return "is not there yet"
    if seen.misses >= AWAY_AFTER:
        return "does not answer"
    return None if seen.status in UP else f"is {seen.status}"


def _lost(seen: Seen, now: float, *, leads: bool) -> str | None:
    if seen.status == STRANGER:
        return "is gone: another replica is at its address"
    if seen.status in OVER or (leads and seen.status == ReplicaStatus.STOPPING):
        return f"is {seen.status}"
    patience_s = JOINED_WITHIN_S if seen.status is None else LOST_S
    if seen.misses and now - seen.since >= patience_s:
        return f"has not answered for {patience_s:g} s"
    return None


def _who(member: GroupMember) -> str:
    return f"rank {member.rank} on {member.node}"
