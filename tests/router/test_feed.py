import random

from common.wire.record import Delete, Put, ServiceRecord, Snapshot
from router import feed
from router.directory import Directory
from router.model import Table


def record(number: int, rng: random.Random) -> ServiceRecord:
    return ServiceRecord(
        name=f"s{number}",
        host="10.0.0.1",
        port=9000 + number,
        url=f"http://10.0.0.1:{9000 + number}",
        metadata={"type": "openai-api", "models": [rng.choice("mn")]},
        instance_id="i",
        generation=rng.randrange(2),
        draining=rng.random() < 0.2,
    )


def test_a_worker_that_is_told_what_changes_has_the_masters_table() -> None:
    rng = random.Random(5)
    book = Directory(grace_s=60.0, max_errors=3, slots=64)
    book.apply(Snapshot(epoch="e", revision=1, services=[record(number, rng) for number in range(12)]), 0.0)
    masters = book.table()
    workers = Table.of(masters.version, masters.endpoints)
    for _ in range(300):
        for _ in range(rng.randrange(4)):
            number = rng.randrange(16)
            if rng.random() < 0.3:
                book.apply(Delete(epoch="e", revision=2, name=f"s{number}", reason="deregistered"), 0.0)
            else:
                book.apply(Put(epoch="e", revision=2, service=record(number, rng)), 0.0)
        before, masters = masters, book.table()
        changes = feed.Changes.between(before, masters)
        sent = feed._decode(feed._encode(changes))
        assert isinstance(sent, feed.Changes)
        workers = sent.made_in(workers)
        assert workers.version == masters.version
        assert sorted(workers.endpoints, key=lambda one: one.name) == sorted(
            masters.endpoints, key=lambda one: one.name
        )
        assert len(changes.changed) <= 3
