"""What a member makes of the others: when the record goes out, and when the group is given up."""

import asyncio

import pytest

from babysitter import events as ev
from babysitter import ports
from babysitter.group import AWAY_AFTER, JOINED_WITHIN_S, LOOK_S, LOOK_TIMEOUT_S, LOST_S, STRANGER, Outlook
from babysitter.lifecycle import ReplicaState, RestartPolicy
from babysitter.machine import step
from babysitter.probe import NotListening, ProcessProbe
from common.wire.group import BROKEN, GroupMember
from tests.babysitter.test_machine import START, UP, play

MEMBERS = [
    GroupMember(rank=rank, node=f"n{rank}", replica_id=f"abcdefabcde{rank}", host="127.0.0.1", port=20_000 + 2 * rank)
    for rank in range(3)
]
NOW = 100.0


def outlook(rank: int, *words: dict[int, str | None]) -> Outlook:
    """After one look a second with these answers; the last one was now."""
    found = Outlook(MEMBERS, rank, NOW - len(words))
    for number, word in enumerate(words):
        found.saw(word, NOW + 1 + number - len(words))
    return found


GOOD: dict[int, str | None] = {1: "healthy", 2: "unregistered"}


@pytest.mark.parametrize(
    ("words", "away", "broken"),
    [
        ([], "rank 1 on n1 is not there yet", None),
        ([GOOD], None, None),
        ([{**GOOD, 2: "waiting_for_ready"}], "rank 2 on n2 is waiting_for_ready", None),
        ([{**GOOD, 2: "unhealthy"}], "rank 2 on n2 is unhealthy", None),
        ([GOOD, {**GOOD, 1: None}], None, None),
        ([GOOD, *[{**GOOD, 1: None}] * AWAY_AFTER], "rank 1 on n1 does not answer", None),
        ([GOOD, *[{**GOOD, 1: None}] * AWAY_AFTER, GOOD], None, None),
        ([{**GOOD, 1: "failed"}], "rank 1 on n1 is failed", f"{BROKEN}: rank 1 on n1 is failed"),
        ([{**GOOD, 1: "stopping"}], "rank 1 on n1 is stopping", f"{BROKEN}: rank 1 on n1 is stopping"),
        (
            [{**GOOD, 2: STRANGER}],
            "rank 2 on n2 is stranger",
            f"{BROKEN}: rank 2 on n2 is gone: another replica is at its address",
        ),
    ],
)
def test_a_leader_serves_while_all_others_are_up(
    words: list[dict[int, str | None]], away: str | None, broken: str | None
) -> None:
    found = outlook(0, *words)
    assert (found.away(), found.broken(NOW)) == (away, broken)


@pytest.mark.parametrize(("word", "broken"), [("stopping", False), ("unhealthy", False), ("stopped", True)])
def test_a_follower_goes_on_while_its_leader_finishes_requests(word: str, *, broken: bool) -> None:
    found = outlook(2, {0: word})
    assert [one.rank for one in found.others] == [0]
    assert found.away() is None
    assert bool(found.broken(NOW)) is broken


def test_silence_breaks_a_group_later_than_it_takes_the_record_out_and_later_still_at_its_start() -> None:
    silent = outlook(0, GOOD, {**GOOD, 1: None})
    assert silent.broken(NOW + LOST_S - 0.1) is None
    assert silent.broken(NOW + LOST_S) == f"{BROKEN}: rank 1 on n1 has not answered for 10 s"
    fresh = outlook(0, {**GOOD, 1: None})
    assert fresh.broken(NOW - 1 + JOINED_WITHIN_S - 0.1) is None
    assert fresh.broken(NOW - 1 + JOINED_WITHIN_S) is not None


def test_a_member_that_was_itself_stopped_for_a_while_gives_nobody_up_by_that() -> None:
    found = outlook(0, GOOD)
    found.saw({**GOOD, 1: None}, NOW + 3600)
    assert found.broken(NOW + 3600) is None


def test_the_record_is_out_within_two_seconds_of_a_death() -> None:
    """Dead right after a look that it answered; every further look takes its whole time-out."""
    assert AWAY_AFTER * (LOOK_S + LOOK_TIMEOUT_S) < 1.7


def test_the_leader_leaves_the_rotation_at_once_and_a_broken_group_is_not_started_again() -> None:
    policy = RestartPolicy(max_restarts=0)
    life, effects = play([*UP, (2, ev.MemberAway("rank 1 on n1 does not answer"))], policy)
    assert (life.state, effects) == (ReplicaState.UNHEALTHY, [ev.Spawn()])
    for number in range(policy.healthy_after):
        life, _ = step(life, ev.ProbeGood(), policy, 3.0 + number)
    assert life.state is ReplicaState.READY
    for events in (START, UP, [*UP, (2, ev.MemberAway("x"))]):
        life, effects = play([*events, (5, ev.GroupBroken(f"{BROKEN}: x")), (6, ev.Exited(signal=15))], policy)
        assert effects == [ev.Spawn(), ev.Terminate(), ev.CancelJobs()]
        assert life.state is ReplicaState.FAILED
        assert life.error is not None
        assert life.error.startswith(BROKEN)


async def test_a_server_without_http_is_up_when_it_listens_and_is_not_connected_to() -> None:
    connected: list[object] = []

    async def take(_reader: object, writer: asyncio.StreamWriter) -> None:
        connected.append(writer)
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    probe = ProcessProbe(session=None, timeout_s=1, listens=True)  # type: ignore[arg-type] # it asks for nothing
    assert await probe.look(f"http://127.0.0.1:{port}") == ()
    server.close()
    await server.wait_closed()
    assert not connected
    assert not ports.listens(port)
    with pytest.raises(NotListening):
        await probe.look(f"http://127.0.0.1:{port}")
