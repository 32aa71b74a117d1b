import pytest

from registry.core.catalogue import Catalogue
from registry.core.model import Deregister, Learn, Register, Renew
from registry.core.pacing import LONGEST_S, Pace, next_step
from tests.registry.conftest import Client, body, parts
from tests.registry.records import registration


@pytest.mark.parametrize(
    ("told_s", "enough_s", "next_s"),
    [
        (0, 0.0, 0),
        (0, 5.0, 0),
        (0, 5.1, 10),
        (0, 10.1, 20),
        (0, 14.0, 20),
        (10, 10.0, 10),
        (10, 10.1, 20),
        (10, 3.5, 10),
        (10, 3.4, 0),
        (20, 7.0, 20),
        (20, 6.9, 10),
        (40, 1.0, 0),
        (80, 1000.0, LONGEST_S),
        (LONGEST_S, 1000.0, LONGEST_S),
    ],
)
def test_steps_double_and_go_back_only_with_room_to_spare(told_s: int, enough_s: float, next_s: int) -> None:
    assert next_step(told_s, enough_s) == next_s


def test_a_fleet_that_keeps_its_size_is_told_one_thing() -> None:
    for tenths in range(2000):
        from_below, from_above = next_step(0, tenths / 10), next_step(LONGEST_S, tenths / 10)
        assert from_below <= from_above
        for told_s in (from_below, from_above):
            assert next_step(told_s, tenths / 10) == told_s


def test_nothing_is_said_before_it_is_known_who_beats_here() -> None:
    pace = Pace(10.0, known_at=100.0)
    pace.judge(2000, 99.0)
    assert (pace.interval_s, pace.said) == (None, b"")
    pace.judge(2000, 100.0)
    assert (pace.interval_s, pace.said) == (160, b',"heartbeat_interval_s":160')
    pace.judge(1, 101.0)
    assert (pace.interval_s, pace.said) == (0, b',"heartbeat_interval_s":0')


def test_only_those_that_beat_here_and_say_how_long_they_last_are_counted() -> None:
    catalogue = Catalogue(epoch="e", shared=True)
    for name, ttl_s in (("short", 15.0), ("long", 60.0), ("elsewhere", 60.0)):
        catalogue.apply(Register(registration(name, instance_id="a", ttl_s=ttl_s)), 0.0)
    catalogue.apply(Register(registration("old-kind")), 0.0)
    elsewhere = catalogue.get("elsewhere")
    assert elsewhere is not None
    assert catalogue.beating(1.0) == 3
    catalogue.apply(Deregister("elsewhere"), 1.0)
    catalogue.apply(Learn(elsewhere.instance), 1.0)
    assert catalogue.beating(1.0) == 2
    assert catalogue.beating(15.0) == 1
    catalogue.apply(Renew("short"), 16.0)
    assert catalogue.beating(17.0) == 2


async def test_the_pace_is_told_with_every_answer_to_a_heartbeat(client: Client) -> None:
    registry = parts(client)
    await client.post("/services", json=body("svc"))
    for told_s, doubted in ((0, False), (40, False), (40, True)):
        registry.pace.judge(int(told_s * registry.pace.most_per_s), registry.clock.monotonic())
        if doubted:
            await client.post("/v1/routers/r/failing", json={"failing": {"svc": "nothing comes"}})
        for content in ({"status": "running"}, {"status": "draining"}):
            async with client.post("/services/svc/heartbeat", json=content) as answer:
                told = await answer.json()
            assert told["heartbeat_interval_s"] == told_s
            assert ("doubt" in told) is doubted
