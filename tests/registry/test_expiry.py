from typing import Any

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from common.wire.record import Registration
from registry.core.catalogue import Catalogue
from registry.core.expiry import ExpiryRules, sweep
from registry.core.model import Instance, Register, Removed, Renew, Sweep, Upsert
from tests.registry.records import registration


def instance(name: str = "svc", ttl_s: float | None = None, **marks: Any) -> Instance:
    said = Registration(
        name=name, host="h", port=1, hostname="h", url="http://h:1", status="running", ttl_s=ttl_s or UNSET
    )
    return replace(Instance(said, generation=1), **marks)


@pytest.mark.parametrize(
    ("ttl_s", "age", "expected"),
    [
        (None, 119.9, "holds"),
        (None, 120.0, "stale"),
        (None, 299.9, "stale"),
        (None, 300.0, "removed"),
        (15.0, 14.9, "holds"),
        (15.0, 15.0, "stale"),
        (15.0, 37.5, "removed"),
    ],
)
def test_lease_of_some_age_is_judged_by_its_length(ttl_s: float | None, age: float, expected: str) -> None:
    swept = sweep([(instance(ttl_s=ttl_s), 0.0)], age, None, ExpiryRules())
    match swept.changes:
        case ():
            assert expected == "holds"
        case (Upsert(found),):
            assert expected == "stale"
            assert not found.is_healthy
        case (Removed(_, "expired"),):
            assert expected == "removed"
        case _:
            pytest.fail(str(swept))


def test_stale_record_is_not_marked_twice() -> None:
    assert sweep([(instance(stale=True), 0.0)], 150, None, ExpiryRules()).changes == ()


class Fleet:
    def __init__(self, size: int) -> None:
        self.catalogue = Catalogue(epoch="e")
        self.names = [f"r{index}" for index in range(size)]
        for name in self.names:
            self.catalogue.apply(Register(registration(name, instance_id=name, ttl_s=10.0)), 0.0)

    def beat(self, names: list[str], now: float) -> None:
        for name in names:
            self.catalogue.apply(Renew(name), now)

    def sweep(self, now: float) -> None:
        self.catalogue.apply(Sweep(), now)

    def preserving(self) -> bool:
        return self.catalogue.preserving_since is not None

    def suspects(self) -> int:
        return sum(entry.instance.suspect for entry in self.catalogue)


def test_mass_expiry_keeps_and_marks_suspect_until_renewals_return_C4() -> None:
    fleet = Fleet(100)
    fleet.beat(fleet.names[:80], 9.0)
    fleet.sweep(10.0)
    assert fleet.preserving()
    assert fleet.suspects() == 20
    fleet.beat(fleet.names[:80], 18.0)
    fleet.sweep(26.0)
    assert len(fleet.catalogue) == 100
    fleet.beat(fleet.names[:90], 27.0)  # 10 % overdue: renewals are above 85 %
    fleet.sweep(27.0)
    assert not fleet.preserving()
    assert len(fleet.catalogue) == 90
    assert fleet.suspects() == 0


def test_few_of_many_expire_as_usual_C4() -> None:
    fleet = Fleet(100)
    fleet.beat(fleet.names[:90], 24.0)
    fleet.sweep(26.0)
    assert len(fleet.catalogue) == 90


def test_many_ends_come_in_sweeps_of_a_hundred_and_none_is_left_out() -> None:
    fleet = Fleet(250)
    left: list[tuple[int, int]] = []
    more = True
    while more:
        decision, _ = fleet.catalogue.apply(Sweep(), 26.0 + 600.0 * (len(left) >= 3))
        assert decision.swept is not None
        assert len(decision.changes) <= 100
        more = decision.swept.more or len(left) < 3
        left.append((len(fleet.catalogue), fleet.suspects()))
    assert left == [(250, 100), (250, 200), (250, 250), (150, 150), (50, 50), (0, 0)]


def test_small_fleet_may_die_whole_C4() -> None:
    fleet = Fleet(4)
    fleet.sweep(26.0)
    assert len(fleet.catalogue) == 0


def test_preservation_ends_after_ten_minutes_C4() -> None:
    fleet = Fleet(20)
    fleet.sweep(26.0)
    assert len(fleet.catalogue) == 20
    fleet.sweep(625.0)
    assert len(fleet.catalogue) == 20
    fleet.sweep(626.0)
    assert len(fleet.catalogue) == 0


def test_renewed_suspect_is_healthy_again_C4() -> None:
    fleet = Fleet(20)
    fleet.sweep(26.0)
    fleet.beat(["r0"], 27.0)
    entry = fleet.catalogue.get("r0")
    assert entry is not None
    assert entry.instance.is_healthy
    assert not entry.instance.suspect
