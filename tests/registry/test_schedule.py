import pytest
from msgspec import structs

from common.wire.record import Registration
from common.wire.words import HealthStatus
from registry.core.model import Instance
from registry.probes.schedule import AGAIN_S, MOST_PER_S, Schedule, is_in_doubt, next_streak, probed_at, verdict

SAID = Registration(name="n", host="10.0.0.1", port=8000, hostname="h", url="http://10.0.0.2:9000/", status="running")


@pytest.mark.parametrize(
    ("kind", "host", "url"),
    [
        ("openai-api", "10.0.0.1", "http://10.0.0.1:8001/health"),
        ("openai-api", "fd00::1", "http://[fd00::1]:8001/health"),
        ("babysitter", "10.0.0.1", "http://10.0.0.2:9000/health"),
        (None, "10.0.0.1", "http://10.0.0.2:9000/health"),
    ],
)
def test_who_is_probed_follows_the_type(kind: str | None, host: str, url: str) -> None:
    metadata = {"type": kind} if kind else {}
    plan = probed_at(Instance(structs.replace(SAID, host=host, metadata=metadata), generation=1))
    assert f"{plan.url}/health" == url


@pytest.mark.parametrize(
    ("answers", "healths"),
    [
        ("+", "H"),
        ("-", "U"),
        ("+--+--", "HHHHHH"),
        ("+---", "HHHU"),
        ("-+-++", "UUUUH"),
        ("+---+++", "HHHUUHH"),
    ],
)
def test_verdict_needs_three_bad_to_fall_and_two_good_to_rise(answers: str, healths: str) -> None:
    health, streak, seen = HealthStatus.UNKNOWN, 0, ""
    for answer in answers:
        streak = next_streak(streak, good=answer == "+")
        health = verdict(health, streak)
        seen += health.value[0].upper()
    assert seen == healths


def test_schedule_spreads_first_probes_and_repeats_them() -> None:
    numbers = iter([0.5, 0.0, 0.5, 0.5, 0.5])
    schedule = Schedule(10.0, lambda: next(numbers))
    schedule.add("late", 0.0, within_s=4.0)
    schedule.add("soon", 0.0, within_s=4.0)
    assert schedule.take(0.0, 10) == ["soon"]
    assert schedule.take(2.0, 10) == ["late"]
    assert schedule.take(9.9, 10) == []
    assert schedule.take(12.0, 1) == ["soon"]
    assert len(schedule) == 2


def test_schedule_forgets_what_is_dropped_and_replanned() -> None:
    schedule = Schedule(10.0, lambda: 0.0)
    schedule.add("a", 0.0, within_s=1.0)
    schedule.add("b", 0.0, within_s=1.0)
    schedule.add("b", 5.0, within_s=1.0)
    schedule.drop("a")
    assert schedule.take(1.0, 10) == []
    assert schedule.take(5.0, 10) == ["b"]


def test_very_many_are_probed_less_often() -> None:
    schedule = Schedule(10.0, lambda: 0.5)
    for number in range(int(MOST_PER_S * 10.0)):
        schedule.add(str(number), 0.0, within_s=1.0)
    assert schedule.pause_s == 10.0
    for number in range(int(MOST_PER_S * 5.0)):
        schedule.add(f"more {number}", 0.0, within_s=1.0)
    assert schedule.pause_s == 15.0
    schedule.take(0.5, 10**6)
    assert schedule.take(15.4, 10**6) == []
    assert len(schedule.take(15.5, 10**6)) == MOST_PER_S * 15.0


def test_one_in_doubt_is_probed_again_soon_unless_it_is_gone() -> None:
    schedule = Schedule(3600.0, lambda: 0.5)
    schedule.add("a", 0.0, within_s=0.0)
    assert schedule.take(0.0, 1) == ["a"]
    schedule.hasten("a", 1.0)
    assert schedule.take(0.9 + AGAIN_S, 1) == []
    assert schedule.take(1.0 + AGAIN_S, 1) == ["a"]
    schedule.drop("a")
    schedule.hasten("a", 1.0)
    assert len(schedule) == 0


@pytest.mark.parametrize(
    ("health", "streak", "doubted"),
    [
        (HealthStatus.HEALTHY, 1, False),
        (HealthStatus.HEALTHY, -1, True),
        (HealthStatus.HEALTHY, -2, True),
        (HealthStatus.UNHEALTHY, -3, False),
        (HealthStatus.UNHEALTHY, -1, False),
        (HealthStatus.UNHEALTHY, 1, True),
    ],
)
def test_doubt_is_where_the_next_probe_may_change_what_is_believed(
    health: HealthStatus, streak: int, *, doubted: bool
) -> None:
    assert is_in_doubt(health, streak) is doubted
