from typing import Any

import pytest
from msgspec import UNSET

from common.wire.record import Registration
from common.wire.words import HealthStatus
from registry.core.catalogue import Catalogue, Revised
from registry.core.model import (
    Command,
    Conflict,
    Deregister,
    Full,
    Instance,
    Register,
    Removed,
    Renew,
    SetDraining,
    SetHealth,
    Sweep,
    Unknown,
    Update,
    Upsert,
)
from registry.core.ownership import Claim
from registry.core.report import make_report
from tests.registry.records import registration


def said(name: str = "svc", instance_id: str | None = "a", incarnation: int = 1, **more: Any) -> Registration:
    identity = {"instance_id": instance_id or UNSET, "incarnation": incarnation}
    return registration(name, **{**identity, "ttl_s": 15.0 if instance_id else UNSET, **more})


class Driver:
    """A catalogue and its time."""

    def __init__(self, **options: Any) -> None:
        self.catalogue = Catalogue(epoch="e", **options)
        self.now = 0.0

    def do(self, command: Command, *, after: float = 0.0) -> tuple[Revised, ...]:
        self.now += after
        return self.catalogue.apply(command, self.now)[1]

    def held(self, name: str = "svc") -> Instance:
        entry = self.catalogue.get(name)
        assert entry is not None
        return entry.instance


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_register_new_name_puts_it_with_the_first_revision_and_generation(driver: Driver) -> None:
    (revised,) = driver.do(Register(said()))
    assert revised == Revised(1, Upsert(Instance(said(), generation=1), durable=True, claims=True))


def test_decide_touches_nothing(driver: Driver) -> None:
    driver.catalogue.decide(Register(said()), 0.0)
    assert len(driver.catalogue) == 0
    assert driver.catalogue.revision == 0


OWNERS = [
    # held (id, incarnation), claim (id, incarnation), what happens while the lease holds, what after it ended
    (("a", 1), ("a", 1), Claim.REPEAT, Claim.REPEAT),
    (("a", 1), ("a", 2), Claim.TAKEOVER, Claim.TAKEOVER),
    (("a", 2), ("a", 1), Conflict, Conflict),
    (("a", 1), ("b", 9), Conflict, Claim.TAKEOVER),
    (("a", 1), (None, 0), Conflict, Claim.TAKEOVER),
    ((None, 0), ("a", 1), Claim.TAKEOVER, Claim.TAKEOVER),
    ((None, 0), (None, 0), Claim.TAKEOVER, Claim.TAKEOVER),
]


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize(("held", "claim", "while_held", "after_end"), OWNERS)
def test_register_held_name_is_decided_by_id_incarnation_and_lease_C6(
    driver: Driver, *, held: Any, claim: Any, while_held: Any, after_end: Any, ended: bool
) -> None:
    driver.do(Register(said(instance_id=held[0], incarnation=held[1])))
    if ended:
        driver.do(Sweep(), after=16 if held[0] else 121)
    expected = after_end if ended else while_held
    command = Register(said(instance_id=claim[0], incarnation=claim[1]))
    if expected is Conflict:
        before = driver.held()
        with pytest.raises(Conflict):
            driver.do(command)
        assert driver.held() == before
    else:
        decision, _ = driver.catalogue.apply(command, driver.now)
        assert decision.claim is expected
        assert driver.held().generation == (2 if expected is Claim.TAKEOVER else 1)
        assert not driver.held().stale


def test_register_repeated_changes_nothing_and_has_no_revision_C8(driver: Driver) -> None:
    driver.do(Register(said(timestamp=1.0)))
    assert driver.do(Register(said(timestamp=2.0))) == ()
    assert driver.held().registration.timestamp == 1.0


def test_register_repeated_with_other_metadata_changes_the_record_in_place(driver: Driver) -> None:
    driver.do(Register(said()))
    driver.do(Register(said(metadata={"x": 1})))
    assert driver.held().registration.metadata == {"x": 1}
    assert driver.held().generation == 1


def test_register_beyond_capacity_is_refused() -> None:
    driver = Driver(capacity=1)
    driver.do(Register(said("one")))
    with pytest.raises(Full):
        driver.do(Register(said("two")))
    driver.do(Register(said("one", incarnation=2)))


def test_generation_is_monotone_over_deregistration(driver: Driver) -> None:
    driver.do(Register(said(incarnation=1)))
    driver.do(Register(said(incarnation=2)))
    driver.do(Deregister("svc"))
    driver.do(Register(said(incarnation=3)))
    assert driver.held().generation == 3


BEATS: list[tuple[Any, Any, type[Exception] | None]] = [
    (("a", 2), ("a", 2), None),
    (("a", 2), ("a", 1), Conflict),
    (("a", 2), ("a", 3), Unknown),
    (("a", 2), ("b", 2), Conflict),
    (("a", 2), (None, None), None),
    ((None, 0), (None, None), None),
    ((None, 0), ("a", 1), Unknown),
]


@pytest.mark.parametrize(("owner", "beat", "refusal"), BEATS)
def test_renew_is_for_the_owner_only_C5(driver: Driver, owner: Any, beat: Any, refusal: type[Exception] | None) -> None:
    driver.do(Register(said(instance_id=owner[0], incarnation=owner[1])))
    before = driver.held()
    command = Renew("svc", instance_id=beat[0], incarnation=beat[1], status="stopping")
    if refusal is None:
        driver.do(command)
        assert driver.held().status == "stopping"
    else:
        with pytest.raises(refusal):
            driver.do(command)
        assert driver.held() == before


def test_renew_unknown_name_asks_to_register_C1(driver: Driver) -> None:
    with pytest.raises(Unknown, match="register again"):
        driver.do(Renew("svc"))


def test_renew_without_news_changes_nothing_but_the_lease(driver: Driver) -> None:
    driver.do(Register(said()))
    assert driver.do(Renew("svc", instance_id="a", incarnation=1), after=14) == ()
    assert driver.do(Sweep(), after=14) == ()


def test_renew_with_load_figures_is_shown_and_not_durable(driver: Driver) -> None:
    driver.do(Register(said()))
    driver.do(Renew("svc", report=make_report({"replica_id": "r", "running": 1})))
    (revised,) = driver.do(Renew("svc", report=make_report({"replica_id": "r", "running": 2})))
    assert isinstance(revised.change, Upsert)
    assert not revised.change.durable
    (revised,) = driver.do(Renew("svc", report=make_report({"replica_id": "r", "running": 2, "models": ["m"]})))
    assert isinstance(revised.change, Upsert)
    assert revised.change.durable


@pytest.mark.parametrize(
    ("kind", "reported", "shown"),
    [("openai-api", "ready", "running"), ("openai-api", "unhealthy", "unhealthy"), ("mock", "starting", "running")],
)
def test_renew_with_report_translates_the_replicas_status(driver: Driver, kind: str, reported: str, shown: str) -> None:
    driver.do(Register(said(metadata={"type": kind})))
    driver.do(Renew("svc", status=reported, report=make_report({"replica_id": "r", "status": reported})))
    assert driver.held().status == shown


def test_late_heartbeat_of_a_deregistered_life_is_refused_for_a_minute_C7(driver: Driver) -> None:
    driver.do(Register(said(incarnation=4)))
    driver.do(Deregister("svc"))
    with pytest.raises(Conflict):
        driver.do(Renew("svc", instance_id="a", incarnation=4), after=59)
    with pytest.raises(Unknown):
        driver.do(Renew("svc", instance_id="a", incarnation=5))
    with pytest.raises(Unknown):
        driver.do(Renew("svc"))
    with pytest.raises(Unknown):
        driver.do(Renew("svc", instance_id="a", incarnation=4), after=2)


def test_registration_right_after_deregistration_is_welcome_C7(driver: Driver) -> None:
    driver.do(Register(said()))
    driver.do(Deregister("svc"))
    driver.do(Register(said()))
    driver.do(Renew("svc", instance_id="a", incarnation=1))


def test_deregister_for_another_instance_is_refused(driver: Driver) -> None:
    driver.do(Register(said(instance_id="a")))
    with pytest.raises(Conflict):
        driver.do(Deregister("svc", "b"))
    (revised,) = driver.do(Deregister("svc", "a"))
    assert revised.change == Removed(Instance(said(), generation=1), "deregistered")
    with pytest.raises(Unknown):
        driver.do(Deregister("svc"))


def test_drain_survives_heartbeats_and_restarts_until_undrain_D28(driver: Driver) -> None:
    driver.do(Register(said()))
    driver.do(SetDraining("svc", on=True))
    assert driver.held().status == "draining"
    driver.do(Renew("svc", status="running"))
    driver.do(Register(said(incarnation=2)))
    assert driver.held().is_draining
    assert not driver.held().is_healthy
    driver.do(SetDraining("svc", on=False))
    assert driver.held().status == "running"
    assert driver.do(SetDraining("svc", on=False)) == ()


def test_drain_ends_with_its_owner_D28(driver: Driver) -> None:
    driver.do(Register(said(instance_id="a")))
    driver.do(SetDraining("svc", on=True))
    driver.do(Sweep(), after=16)
    driver.do(Register(said(instance_id="b")))
    assert not driver.held().is_draining


def test_update_replaces_metadata_renews_and_is_durable(driver: Driver) -> None:
    driver.do(Register(said(metadata={"a": 1, "b": 1})))
    (revised,) = driver.do(Update("svc", {"port": 7, "metadata": {"b": 2}}), after=14)
    assert isinstance(revised.change, Upsert)
    assert revised.change.durable
    assert driver.held().registration.port == 7
    assert driver.held().registration.metadata == {"b": 2}
    assert driver.do(Sweep(), after=14) == ()
    with pytest.raises(Unknown):
        driver.do(Update("other", {}))


def test_health_verdict_for_an_owner_that_is_gone_is_ignored(driver: Driver) -> None:
    driver.do(Register(said()))
    driver.do(Register(said(incarnation=2)))
    assert driver.do(SetHealth("svc", 1, HealthStatus.HEALTHY)) == ()
    assert driver.do(SetHealth("gone", 1, HealthStatus.HEALTHY)) == ()
    driver.do(SetHealth("svc", 2, HealthStatus.HEALTHY))
    assert driver.held().health is HealthStatus.HEALTHY


def test_load_gives_every_lease_its_full_length_C2(driver: Driver) -> None:
    driver.now = 500.0
    driver.catalogue.load([Instance(said(), generation=7, stale=True)], driver.now, generation_floor=9)
    assert driver.do(Sweep(), after=14.9) == ()
    assert driver.do(Sweep(), after=0.2) != ()
    driver.do(Register(said("new")))
    assert driver.held("new").generation == 10
    assert driver.held().generation == 7


@pytest.mark.parametrize(
    "command", [Register(said(instance_id="b")), Renew("svc", instance_id="b"), Deregister("svc", "b")]
)
def test_refusal_of_a_name_tells_where_its_holder_is_W32(driver: Driver, command: Command) -> None:
    driver.do(Register(said(host="10.0.0.1", port=8000)))
    with pytest.raises(Conflict, match=r"belongs to instance a at 10\.0\.0\.1:8000"):
        driver.do(command)
