import json
from typing import Any

import msgspec
import pytest

from common.wire.record import (
    Beat,
    Delete,
    Put,
    ServiceRecord,
    Snapshot,
    Update,
    decode_update,
    record_from_wire,
)

MINIMAL = {"name": "a", "host": "h", "port": 1, "url": "http://h:1"}


def test_a_minimal_record_gets_the_defaults_of_a_legacy_one() -> None:
    record = record_from_wire(MINIMAL)
    assert (record.status, record.weight, record.incarnation, record.instance_id) == ("running", None, 0, None)
    assert record.type is None


def test_unknown_members_are_ignored() -> None:
    assert record_from_wire({**MINIMAL, "new_thing": {"x": 1}}).name == "a"


@pytest.mark.parametrize("timestamp", [1.5, "2026-01-01T00:00:00Z", None])
def test_a_timestamp_may_be_whatever_the_legacy_side_sent(timestamp: Any) -> None:
    assert record_from_wire({**MINIMAL, "timestamp": timestamp}).timestamp == timestamp


@pytest.mark.parametrize("metadata", [{}, {"type": 5}, {"type": None}])
def test_a_type_that_is_no_text_is_none(metadata: dict[str, Any]) -> None:
    assert record_from_wire({**MINIMAL, "metadata": metadata}).type is None


@pytest.mark.parametrize("wrong", [{}, [], None, {**MINIMAL, "port": "x"}, {**MINIMAL, "metadata": []}])
def test_what_is_no_record_is_refused(wrong: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        record_from_wire(wrong)


RECORD = ServiceRecord(**MINIMAL, metadata={"type": "openai-api"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("update", "kind"),
    [
        (Snapshot(epoch="e", revision=3, services=[RECORD]), "snapshot"),
        (Put(epoch="e", revision=4, service=RECORD), "put"),
        (Delete(epoch="e", revision=5, name="a", reason="expired"), "delete"),
        (Beat(epoch="e", revision=5), "beat"),
    ],
)
def test_every_update_is_one_json_line_that_says_its_kind(update: Update, kind: str) -> None:
    line = msgspec.json.encode(update)
    assert b"\n" not in line
    assert json.loads(line)["type"] == kind
    assert decode_update(line) == update


def test_an_unknown_kind_of_update_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_update(b'{"type": "surprise", "epoch": "e", "revision": 1}')
