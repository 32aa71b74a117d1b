"""Who stands still, by a clock that the test turns."""

from collections.abc import Iterable

from router.silence import LEAST_S, NEWCOMER_S, Kind, Silence

CHAT, WHOLE = (b"/chat/completions", True), (b"/chat/completions", False)
TURN_S = 0.25


def known(silence: Silence, name: str, kind: Kind, wait_s: float, now: float = 0.0) -> None:
    for _ in range(20):
        silence.answered(name, kind, wait_s, now)


def watch(
    silence: Silence, start: float, end: float, waiting: Iterable[tuple[str, Kind, float]], heard: Iterable[str] = ()
) -> dict[str, float]:
    """Look four times a second; when each replica was first found to stand still."""
    found: dict[str, float] = {}
    for turn in range(int((end - start) / TURN_S)):
        now = start + turn * TURN_S
        silence.begin()
        for name, kind, since in waiting:
            if now >= since:
                silence.waits(name, kind, since, 0.0)
        for name in heard:
            silence.heard(name, now)
        for name in silence.judge(now):
            found.setdefault(name, now)
    return found


def test_a_replica_is_late_once_its_silence_is_longer_than_its_own_pace_explains_W45() -> None:
    silence = Silence()
    known(silence, "quick", CHAT, 0.2)
    known(silence, "slow", CHAT, 10.0)
    found = watch(silence, 100.0, 130.0, [("quick", CHAT, 100.0), ("slow", CHAT, 100.0)])
    assert LEAST_S <= found["quick"] - 100.0 <= LEAST_S + 1.0
    assert 10.0 < found["slow"] - 100.0 < 20.0


def test_any_byte_ends_a_silence_W45() -> None:
    silence = Silence()
    known(silence, "a", CHAT, 0.2)
    waiting = [("a", CHAT, 100.0)]
    assert not watch(silence, 100.0, 160.0, waiting, heard=["a"])
    assert watch(silence, 160.0, 170.0, waiting)
    assert silence.answered("a", CHAT, 70.0, 170.0)
    assert not watch(silence, 170.0, 170.0 + LEAST_S, [("a", CHAT, 170.0)])
    assert not silence.answered("a", CHAT, 0.2, 173.0)


def test_an_answer_in_one_piece_may_take_as_long_as_they_take_there_W45() -> None:
    silence = Silence()
    known(silence, "a", CHAT, 0.2)
    known(silence, "a", WHOLE, 20.0)
    assert not watch(silence, 100.0, 119.0, [("a", WHOLE, 100.0)])
    assert watch(silence, 119.0, 150.0, [("a", WHOLE, 100.0)])


def test_a_long_prompt_explains_a_silence_W45() -> None:
    silence = Silence()
    known(silence, "a", CHAT, 0.2)
    for turn in range(160):
        silence.begin()
        silence.waits("a", CHAT, 100.0, 60.0)
        assert not silence.judge(100.0 + turn * TURN_S)


def test_a_newcomer_is_given_more_time_W45() -> None:
    silence = Silence()
    known(silence, "old", CHAT, 0.2)
    found = watch(silence, 100.0, 200.0, [("new", CHAT, 100.0)])
    assert found["new"] - 100.0 >= NEWCOMER_S


def test_the_time_in_which_the_worker_itself_stood_still_is_nobodys_silence_W45() -> None:
    silence = Silence()
    known(silence, "a", CHAT, 0.2)
    for now in (100.0, 130.0, 160.0):
        silence.begin()
        silence.waits("a", CHAT, 100.0, 0.0)
        assert not silence.judge(now)


def test_who_leaves_before_an_answer_does_not_end_the_silence_but_lets_others_try_W45() -> None:
    silence = Silence()
    known(silence, "a", CHAT, 0.2)
    assert watch(silence, 100.0, 102.0, [("a", CHAT, 100.0)]) == {}
    assert watch(silence, 102.0, 104.0, [("a", CHAT, 102.0)])  # another one, after the first has left
    assert watch(silence, 104.0, 105.0, []) == {}
    assert watch(silence, 105.0, 108.0, [("a", CHAT, 105.0)])["a"] < 108.0


def test_memory_of_gone_replicas_is_dropped() -> None:
    silence = Silence()
    known(silence, "a", CHAT, 0.2)
    silence.forget_all_but({"b"})
    assert not silence.replicas
