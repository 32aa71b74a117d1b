from dataclasses import replace
from typing import Any

import msgspec
import pytest

from common.wire.record import Beat, Delete, Put, ServiceRecord, Snapshot
from router.control.views import model_list
from router.directory import Directory
from router.model import Eligibility
from router.static_file import StaticService


def record(name: str = "a-server", **more: Any) -> ServiceRecord:
    plain = ServiceRecord(
        name=name,
        host="10.0.0.1",
        port=9000,
        url="http://10.0.0.1:9000",
        metadata={"type": "openai-api", "models": ["m"]},
        instance_id="i1",
        incarnation=1,
        generation=1,
    )
    return msgspec.structs.replace(plain, **more)


def directory(**more: Any) -> Directory:
    return Directory(**{"grace_s": 60.0, "max_errors": 3, "slots": 8, **more})


def snapshot(*records: ServiceRecord) -> Snapshot:
    return Snapshot(epoch="e", revision=1, services=list(records))


def delete(name: str, reason: Any) -> Delete:
    return Delete(epoch="e", revision=2, name=name, reason=reason)


def eligibility(book: Directory, name: str = "a-server") -> Eligibility:
    return book.replicas[name].eligibility


def test_only_routable_records_enter() -> None:
    book = directory()
    book.apply(snapshot(record(), record("a", metadata={"type": "mock"}), record("b", metadata={})), 0.0)
    assert list(book.replicas) == ["a-server"]
    table = book.table()
    assert [endpoint.name for endpoint in table.by_model["m"]] == ["a-server"]
    assert table.endpoints[0].authority == "10.0.0.1:9000"


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_a_host_with_or_without_brackets_is_asked_alike(host: str) -> None:
    book = directory()
    book.apply(snapshot(record(host=host, url=f"{host}:9000")), 0.0)  # no URL: the record's host and port
    (endpoint,) = book.table().endpoints
    assert (endpoint.host, endpoint.authority) == ("::1", "[::1]:9000")


def test_a_vanished_replica_is_kept_for_the_grace_while_our_probe_passes() -> None:
    book = directory()
    book.apply(snapshot(record()), 0.0)
    book.apply(snapshot(), 10.0)
    assert eligibility(book) is Eligibility.DOWN  # nobody vouches for it yet
    book.note_probe("a-server", ok=True)
    assert eligibility(book) is Eligibility.SUSPECT
    assert not book.expire(69.9)
    assert book.expire(70.0)
    assert not book.replicas


def test_a_replica_that_returns_in_time_is_fresh_again_in_its_old_slot() -> None:
    book = directory()
    book.apply(snapshot(record()), 0.0)
    slot = book.replicas["a-server"].slot
    book.apply(snapshot(), 10.0)
    book.apply(snapshot(record()), 20.0)
    assert (eligibility(book), book.replicas["a-server"].slot) == (Eligibility.FRESH, slot)
    assert not book.expire(1000.0)


def test_deregistration_is_at_once_and_expiry_has_the_grace_D28() -> None:
    book = directory()
    book.apply(snapshot(record(), record("b-server")), 0.0)
    assert book.apply(delete("a-server", "deregistered"), 1.0)
    assert book.apply(delete("b-server", "expired"), 1.0)
    assert list(book.replicas) == ["b-server"]
    assert not book.apply(delete("b-server", "expired"), 2.0)
    assert not book.apply(delete("nobody", "deregistered"), 2.0)


def test_a_stale_lease_makes_suspect_and_only_our_probe_takes_down_D4() -> None:
    book = directory()
    book.apply(snapshot(record()), 0.0)
    book.note_probe("a-server", ok=True)
    book.apply(Put(epoch="e", revision=2, service=record(is_healthy=False)), 1.0)
    assert eligibility(book) is Eligibility.SUSPECT
    for _ in range(2):
        assert not book.note_probe("a-server", ok=False)
    assert book.note_probe("a-server", ok=False)
    assert eligibility(book) is Eligibility.DOWN


def test_two_good_probes_bring_back_what_probes_took_out_A4() -> None:
    book = directory()
    book.apply(snapshot(record()), 0.0)
    for _ in range(3):
        book.note_probe("a-server", ok=False)
    assert eligibility(book) is Eligibility.DOWN
    assert not book.note_probe("a-server", ok=True)
    assert book.note_probe("a-server", ok=True)
    assert eligibility(book) is Eligibility.FRESH


def test_status_and_drain_decide_too() -> None:
    book = directory()
    book.apply(snapshot(record(status="starting")), 0.0)
    assert eligibility(book) is Eligibility.DOWN
    book.apply(snapshot(record(status="draining", draining=True, is_healthy=False)), 0.0)
    assert eligibility(book) is Eligibility.DRAINING


def test_who_drains_may_hand_over_its_streams_A23() -> None:
    cases: list[tuple[dict[str, Any], bool]] = [
        ({}, False),
        ({"draining": True}, False),
        ({"draining": True, "hand_over": True}, True),
    ]
    for more, hands_over in cases:
        book = directory()
        book.apply(snapshot(record(**more)), 0.0)
        assert book.table().endpoints[0].hands_over is hands_over


def test_a_new_life_is_a_new_endpoint_without_the_old_ones_history_D27() -> None:
    book = directory()
    book.apply(snapshot(record()), 0.0)
    for _ in range(3):
        book.note_probe("a-server", ok=False)
    old = book.table().endpoints[0]
    book.apply(snapshot(record(incarnation=2, generation=2, metadata={"type": "openai-api", "models": ["n"]})), 1.0)
    new = book.table().endpoints[0]
    assert (new.eligibility, new.models) == (Eligibility.FRESH, ("n",))
    assert new.id != old.id
    assert new.slot != old.slot


def test_static_services_never_vanish_and_follow_their_file() -> None:
    book = directory()
    book.set_static(
        [
            StaticService(name="s", host="::1", port=1, weight=3, metadata={"models": ["x"]}).record(),
            StaticService(name="other", host="h", port=2, metadata={"type": "babysitter"}).record(),
        ]
    )
    book.apply(snapshot(), 0.0)
    book.apply(delete("s", "deregistered"), 0.0)
    book.apply(snapshot(record("s")), 0.0)
    endpoint = book.table().endpoints[0]
    assert (endpoint.authority, endpoint.weight, endpoint.eligibility) == ("[::1]:1", 3.0, Eligibility.FRESH)
    book.set_static([])
    assert not book.replicas


def test_restored_records_wait_for_our_probe() -> None:
    book = directory()
    book.restore([record()])
    assert eligibility(book) is Eligibility.DOWN
    book.note_probe("a-server", ok=True)
    assert eligibility(book) is Eligibility.SUSPECT
    assert book.saved() == [record()]


def test_models_and_path_form_are_learned_when_the_record_is_silent() -> None:
    book = directory()
    book.apply(snapshot(record(metadata={"type": "openai-api"})), 0.0)
    assert book.table().by_model == {}
    assert book.note_probe("a-server", ok=True, models=("y",), prefix="")
    endpoint = book.table().endpoints[0]
    assert (endpoint.models, endpoint.api_prefix) == (("y",), "")
    book.apply(snapshot(record(metadata={"type": "openai-api", "api_prefix": "/v1", "models": ["z"]})), 0.0)
    endpoint = book.table().endpoints[0]
    assert (endpoint.models, endpoint.api_prefix) == (("z",), "/v1")


def test_weight_comes_from_the_record_then_its_metadata_then_one() -> None:
    cases: list[tuple[Any, Any, float]] = [
        (2, None, 2.0),
        (None, 4, 4.0),
        (-1, None, 1.0),
        (None, True, 1.0),
        (0, 5, 0.0),
    ]
    for weight, inner, expected in cases:
        book = directory()
        book.apply(snapshot(record(weight=weight, metadata={"type": "openai-api", "weight": inner})), 0.0)
        assert book.table().endpoints[0].weight == expected


def test_limit_and_end_mark_come_from_the_metadata_W44() -> None:
    book = directory(default_limit=9)
    none = {"type": "openai-api", "max_concurrency": 4, "stream_end_mark": False}
    sent = {"type": "openai-api", "stream_end_mark": True}
    nonsense = {"type": "openai-api", "stream_end_mark": "yes"}
    book.apply(
        snapshot(
            record(metadata=none),
            record("b-server", metadata=sent),
            record("c-server", metadata=nonsense),
            record("d-server"),
        ),
        0.0,
    )
    assert [one.end_marked for one in book.table().endpoints] == [False, True, None, None]
    assert [one.limit for one in book.table().endpoints] == [4, 9, 9, 9]


def test_replicas_beyond_the_slots_are_left_out_until_one_is_free_W16() -> None:
    book = directory(slots=1)
    book.apply(snapshot(record(), record("b-server"), record("c-server")), 0.0)
    assert (list(book.replicas), list(book.left_out)) == (["a-server"], ["b-server", "c-server"])
    assert [one.name for one in book.saved()] == ["a-server", "b-server", "c-server"]
    book.apply(delete("a-server", "deregistered"), 0.0)
    assert (list(book.replicas), list(book.left_out)) == (["b-server"], ["c-server"])
    book.apply(delete("c-server", "expired"), 0.0)
    assert not book.left_out


@pytest.mark.parametrize("goodbye", [delete("b-server", "deregistered"), snapshot(record())])
def test_replica_that_was_left_out_and_is_gone_is_not_counted_any_more_W16(goodbye: Any) -> None:
    book = directory(slots=1)
    book.apply(snapshot(record(), record("b-server")), 0.0)
    book.apply(goodbye, 0.0)
    assert not book.left_out


COPIED = {"type": "openai-api", "models": ["m"], "models_list": [{"id": "m"}]}


@pytest.mark.parametrize(
    ("changes", "models"),
    [
        ({"instance_id": None, "metadata": COPIED}, ("m", "lora")),
        ({"instance_id": None}, ("m",)),
        ({"metadata": COPIED}, ("m",)),
        ({"metadata": {"type": "openai-api"}}, ("m", "lora")),
    ],
    ids=["copied by an old babysitter", "declared by hand", "watched by ours", "nobody said"],
)
def test_models_are_those_of_who_asks_the_server_all_the_time_W15(changes: Any, models: tuple[str, ...]) -> None:
    book = directory()
    book.apply(snapshot(record(**changes)), 0.0)
    book.note_probe("a-server", ok=True, models=("m", "lora"))
    assert book.replicas["a-server"].models == models


def test_replica_whose_probe_failed_is_in_doubt_until_two_have_passed_W24() -> None:
    book = directory()
    book.apply(snapshot(record()), 0.0)
    doubts = []
    for ok in (True, False, True, False, True, True):
        book.note_probe("a-server", ok=ok)
        doubts.append(book.replicas["a-server"].doubted)
    assert doubts == [False, True, True, True, True, False]


def test_a_beat_changes_nothing() -> None:
    assert not directory().apply(Beat(epoch="e", revision=1), 0.0)


def test_table_versions_rise() -> None:
    book = directory()
    first, second = book.table(), book.table()
    assert second.version == first.version + 1
    assert replace(second, version=first.version) == first


@pytest.mark.parametrize(
    ("report", "waiting"), [({"waiting": 3}, 3), ({"waiting": True}, None), ({"waiting": -1}, None), ("odd", None)]
)
def test_a_reported_queue_is_taken_if_it_is_a_count(report: object, waiting: int | None) -> None:
    book = directory()
    book.apply(Put("e", 1, record(metadata={"type": "openai-api", "replica": report})), 0.0)
    assert [endpoint.waiting for endpoint in book.table().endpoints] == [waiting]


def test_a_server_that_comes_back_to_its_address_is_no_stranger() -> None:
    book = directory()
    silent = record(metadata={"type": "openai-api"})
    book.apply(snapshot(silent), 0.0)
    book.note_probe("a-server", ok=True, models=("m",), prefix="")
    book.apply(Put(epoch="e", revision=2, service=msgspec.structs.replace(silent, incarnation=2)), 1.0)
    [again] = book.table().endpoints
    assert (again.models, again.api_prefix) == (("m",), "")
    assert book.replicas["a-server"].probed_ok is None  # so it is asked again
    moved = msgspec.structs.replace(silent, incarnation=3, port=9001, url="http://10.0.0.1:9001")
    book.apply(Put(epoch="e", revision=3, service=moved), 2.0)
    [other] = book.table().endpoints
    assert (other.models, other.api_prefix) == ((), None)


def test_a_replica_that_was_never_seen_well_has_the_benefit_of_doubt_until_the_first_look_W60() -> None:
    """After a reboot the registry remembers what ran before it: requests to it fail, so it is no model of ours."""
    book = directory()
    book.apply(snapshot(record()), 0.0)
    assert eligibility(book) is Eligibility.FRESH
    assert book.note_probe("a-server", ok=False)
    assert eligibility(book) is Eligibility.DOWN
    assert model_list([*book.replicas.values()]).data == []
    assert book.note_probe("a-server", ok=True)
    assert eligibility(book) is Eligibility.FRESH
    book.note_probe("a-server", ok=False)  # once seen well, one failed look is no verdict
    assert eligibility(book) is Eligibility.FRESH


def test_a_record_says_how_long_its_slow_start_takes() -> None:
    book = directory()
    said = {"type": "openai-api", "models": ["m"], "slow_start_s": 90.0}
    book.apply(
        snapshot(record(metadata=said), record("b-server"), record("c", metadata={**said, "slow_start_s": "x"})), 0.0
    )
    assert [endpoint.slow_start_s for endpoint in book.table().endpoints] == [90.0, None, None]


def test_a_host_in_brackets_is_routed_to() -> None:
    book = directory()
    book.apply(snapshot(record(host="[::1]", url=""), record("b-server", host="[::1]", url="http://[::1]:9000")), 0.0)
    assert [(one.host, one.port, one.authority) for one in book.table().endpoints] == [("::1", 9000, "[::1]:9000")] * 2


def test_an_entry_that_is_no_text_costs_a_record_none_of_its_other_models_and_calls() -> None:
    metadata = {"type": "openai-api", "models": ["m", 7], "serves": ["embed", None]}
    book = directory()
    book.apply(Put(epoch="e", revision=1, service=record(metadata=metadata)), 0.0)
    (endpoint,) = book.table().endpoints
    assert endpoint.models == ("m",)
    assert endpoint.serves is not None
    assert "/embeddings" in endpoint.serves


def put(one: ServiceRecord) -> Put:
    return Put(epoch="e", revision=2, service=one)


def reporting(waiting: int, **more: Any) -> ServiceRecord:
    """As each heartbeat of a busy replica shows it."""
    metadata = {"type": "openai-api", "models": ["m"], "replica": {"waiting": waiting, "updated_at": str(more)}}
    return record(metadata=metadata, **more)


def waits(book: Directory) -> bool:
    return book.figures


def test_heartbeats_change_no_table_and_what_waits_in_an_engine_can_wait() -> None:
    book = directory()
    book.apply(snapshot(reporting(0), record("b-server")), 0.0)
    first = book.table()
    assert not book.apply(put(reporting(0, last_heartbeat=5.0)), 1.0)
    assert not book.apply(put(record("its-babysitter", metadata={"type": "vLLM"})), 1.0)
    assert waits(book) is False
    assert not book.apply(put(reporting(3, last_heartbeat=10.0)), 2.0)
    assert waits(book) is True
    second = book.table()
    assert waits(book) is False
    assert second.endpoints[0].waiting == 3
    assert second.endpoints[1] is first.endpoints[1], "what has not changed is not made again"
    assert not book.apply(put(reporting(3, last_heartbeat=15.0)), 2.5)
    assert waits(book) is True, "who still waits is told again: a report holds for a while only"
    assert book.table().endpoints[0] is not second.endpoints[0]
    assert book.apply(put(reporting(3, weight=2.0)), 3.0)
    assert book.apply(put(reporting(3, weight=2.0, status="draining")), 4.0)
    assert eligibility(book) is Eligibility.DOWN


def test_a_limit_that_is_set_anew_is_in_the_next_table() -> None:
    book = directory(default_limit=1)
    book.apply(snapshot(record()), 0.0)
    assert book.table().endpoints[0].limit == 1
    book.set_limit(2)
    assert book.table().endpoints[0].limit == 2
