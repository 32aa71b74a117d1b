"""The shared map of who made which response."""

import os
from collections.abc import Iterator

import pytest

from router.counters import OWNER_CELLS, Shape, SharedCounters
from router.owners import Owners

A, B, GONE = 0xFFFF_FFFF_FFFF_FFF1, 2, 3
LIVING = (A, B)


@pytest.fixture
def workers() -> Iterator[list[SharedCounters]]:
    """Two processes' views of one map."""
    shape = Shape(slots=2, blocks=2)
    descriptor = SharedCounters.create(shape)
    yield [SharedCounters(descriptor, shape, block) for block in range(2)]
    os.close(descriptor)


def test_what_one_worker_learns_all_know(workers: list[SharedCounters]) -> None:
    one, other = map(Owners, workers)
    one.learn(b'{"object":"response", "id" : "resp_1","output":[{"id":"msg_2"}]}', A, LIVING)
    one.learn(b'event: response.created\ndata: {"response":{"id":"resp_2","status":"queued"}}\n\n', B, LIVING)
    assert [other.find(f"resp_{number}") for number in (1, 2, 3)] == [A, B, 0]


@pytest.mark.parametrize(
    "answer",
    [
        b'{"id":"chatcmpl-1"}',
        b'{"previous_response_id":"resp_1"}',
        b'{"text":"{\\"id\\":\\"resp_1\\"}"}',
        b"{" + b" " * 5000 + b'"id":"resp_1"}',
    ],
)
def test_what_only_looks_like_an_id_is_none(workers: list[SharedCounters], answer: bytes) -> None:
    owners = Owners(workers[0])
    owners.learn(answer, A, LIVING)
    assert owners.find("resp_1") == 0


def test_an_id_stays_with_its_replica_while_that_lives(workers: list[SharedCounters]) -> None:
    owners = Owners(workers[0])
    owners.note("resp_1", A, LIVING)
    owners.note("resp_1", B, LIVING)
    assert owners.find("resp_1") == A
    owners.note("resp_2", GONE, LIVING)
    owners.note("resp_2", B, LIVING)
    assert owners.find("resp_2") == B


def test_the_map_is_bounded_and_keeps_the_latest(workers: list[SharedCounters]) -> None:
    owners, entries = Owners(workers[0]), OWNER_CELLS // 2
    for number in range(2 * entries):
        owners.note(f"resp_{number}", A, LIVING)
    known = [owners.find(f"resp_{number}") == A for number in range(2 * entries)]
    assert sum(known[-1000:]) > 900
    assert sum(known) <= entries


def test_an_entry_half_written_is_none(workers: list[SharedCounters]) -> None:
    owners = Owners(workers[0])
    owners.note("resp_1", A, LIVING)
    cells = workers[1].owner_cells()
    [at] = [cell for cell in range(1, OWNER_CELLS, 2) if cells[cell]]
    cells[at] = B
    assert owners.find("resp_1") == 0
