"""The other members of a group, looked at three times a second for as long as this one is there."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec
import structlog

from babysitter import events as ev
from babysitter.group import LOOK_S, LOOK_TIMEOUT_S, MEMBERS, STRANGER, Outlook
from babysitter.lifecycle import ReplicaState
from babysitter.probe import NotReady
from common.atomic_file import read_bounded
from common.exits import ConfigurationError
from common.http.client import read_bounded as read_answer
from common.wire.address import url
from common.wire.base import Message
from common.wire.group import GroupMember, GroupMembers

log = structlog.get_logger(__name__)
FILE_LIMIT_BYTES = 1 << 20
ANSWER_LIMIT_BYTES = 64 << 10


class _Word(Message, frozen=True, kw_only=True):
    """What is read of `BabysitterHealth`."""

    service: str
    status: str


class Peers:
    """Looks at the others.

    Args:
        members: All members, by rank.
        rank: Our own.
    """

    def __init__(self, members: list[GroupMember], rank: int) -> None:
        self.broken: str | None = None
        """Why the group will never be whole again."""
        self._outlook = Outlook(members, rank, time.monotonic())

    async def run(
        self,
        session: aiohttp.ClientSession,
        scheme: str,
        state: Callable[[], ReplicaState],
        tell: Callable[[ev.Event], None],
    ) -> None:
        """Look until cancelled, and tell what is wrong for as long as it is; `scheme` is our own, and so theirs."""
        others = self._outlook.others
        while True:
            words = await asyncio.gather(*(_ask(session, scheme, one) for one in others))
            now = time.monotonic()
            self._outlook.saw({one.rank: word for one, word in zip(others, words, strict=True)}, now)
            broken, away = self._outlook.broken(now), self._outlook.away()
            if broken and not self.broken:
                log.error("group.broken", reason=broken)
            self.broken = self.broken or broken
            if self.broken:
                tell(ev.GroupBroken(self.broken))
            elif away and state() is ReplicaState.READY:
                log.warning("group.member_away", reason=away)
                tell(ev.MemberAway(away))
            await asyncio.sleep(LOOK_S)

    async def up(self, is_wanted: Callable[[], bool]) -> str | None:
        """Wait until a server that leads may start, which is when the others are up; why it never will, else None."""
        while is_wanted() and not self.broken and self._outlook.away():  # noqa: ASYNC110 - others are asked by then
            await asyncio.sleep(LOOK_S)
        return self.broken

    def check(self) -> None:
        """The leader is not ready while another is not.

        Raises:
            NotReady: One is not.
        """
        if away := self._outlook.away():
            raise NotReady(f"waits for its group: {away}")


async def _ask(session: aiohttp.ClientSession, scheme: str, member: GroupMember) -> str | None:
    """Its babysitter's word; None: there is no answer of use."""
    timeout = aiohttp.ClientTimeout(total=LOOK_TIMEOUT_S)
    try:
        async with session.get(
            f"{url(member.host, member.port + 1, scheme=scheme)}/health", timeout=timeout, allow_redirects=False
        ) as answer:
            word = msgspec.json.decode(await read_answer(answer, ANSWER_LIMIT_BYTES), type=_Word)
    except (aiohttp.ClientError, OSError, TimeoutError, msgspec.MsgspecError):
        return None
    return word.status if word.service == member.replica_id else STRANGER


def load(directory: Path) -> Peers | None:
    """The others of the replica in that directory; None: it is no member of a group.

    Raises:
        ConfigurationError: Its file is of no use.
    """
    path = directory / MEMBERS
    if not path.exists():
        return None
    try:
        members = msgspec.json.decode(read_bounded(path, limit_bytes=FILE_LIMIT_BYTES), type=GroupMembers).members
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: is of no use: {error}") from error
    rank = next((one.rank for one in members if one.replica_id == directory.name), None)
    if rank is None:
        raise ConfigurationError(f"{path}: does not name this replica")
    return Peers(members, rank)
