import pytest
from msgspec import structs

from common.wire.record import Registration
from common.wire.words import HealthStatus
from registry.core.model import Instance
from registry.probes.schedule import Schedule, next_streak, probe_url, verdict

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
def test_probe_url_follows_the_type(kind: str | None, host: str, url: str) -> None:
    metadata = {"type": kind} if kind else {}
    assert probe_url(Instance(structs.replace(SAID, host=host, metadata=metadata), generation=1)) == url


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
