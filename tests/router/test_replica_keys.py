import pytest

from common.wire.record import ServiceRecord
from router.directory import Directory
from router.model import Replica
from router.replica_keys import ReplicaKeys

KEYS = ReplicaKeys(
    static={"gw": "Bearer static"},
    patterns={"gpu-*": "Bearer gpu", "*-special": "Bearer special", "gpu-1": "Bearer one", "team-a": "Basic dTpw"},
)


def replica(name: str, label: object = None, *, static: bool = False) -> Replica:
    metadata = {"type": "openai-api"} | ({} if label is None else {"api_key_label": label})
    record = ServiceRecord(name=name, host="h", port=1, url="http://h:1", metadata=metadata)
    return Replica(record, generation="1", leased=True, static=static)


@pytest.mark.parametrize(
    ("asked", "value"),
    [
        (replica("gpu-2"), "Bearer gpu"),
        (replica("gpu-1"), "Bearer one"),  # an exact name before a pattern
        (replica("gpu-special"), "Bearer gpu"),  # the first pattern
        (replica("gpu-2", "team-a"), "Basic dTpw"),  # the label before the name
        (replica("x", "gpu-9"), "Bearer gpu"),
        (replica("x", 7), None),
        (replica("x"), None),
        (replica("gw", static=True), "Bearer static"),
        (replica("gw"), None),  # a static service's key is for nobody who registers under its name
        (replica("x", "gw"), None),
    ],
)
def test_key_goes_to_the_label_or_name_it_is_meant_for_W3(asked: Replica, value: str | None) -> None:
    assert KEYS.of(asked) == value


def test_keys_read_again_reach_the_endpoints_W3() -> None:
    book = Directory(grace_s=60.0, max_errors=3, slots=8)
    book.restore([replica("gpu-1").record])
    assert [one.authorization for one in book.table().endpoints] == [None]
    book.set_keys(KEYS)
    assert [one.authorization for one in book.table().endpoints] == ["Bearer one"]
    book.restore([replica("gpu-1").record])
    assert [one.authorization for one in book.table().endpoints] == ["Bearer one"]
    assert "Bearer" not in repr((book, book.table(), KEYS))
