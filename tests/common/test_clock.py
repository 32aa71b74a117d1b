import time
from datetime import UTC, datetime, timedelta, timezone

from common.clock import SystemClock, iso


def test_iso_is_utc_with_milliseconds_and_z() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=timezone(timedelta(hours=2)))
    assert iso(moment) == "2026-01-02T01:04:05.678Z"


def test_system_clock_is_the_monotonic_one_and_knows_utc() -> None:
    clock = SystemClock()
    before = time.monotonic()
    assert before <= clock.monotonic() <= time.monotonic()
    assert clock.utcnow().tzinfo is UTC
