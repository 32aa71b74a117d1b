"""Placements travel between workers: whole or not at all."""

import os
import random

import pytest

from router.counters import FIELDS, IN_FLIGHT, RING_CELLS, Shape, SharedCounters
from router.model import Facts
from router.policy.blocks import chain
from router.policy.fleet_view import FleetView
from router.sharing import Sharing
from tests.router.test_policy import endpoint

PROMPT = b"x" * 8192


@pytest.fixture
def boards() -> tuple[SharedCounters, SharedCounters]:
    shape = Shape(slots=4, blocks=2)
    descriptor = SharedCounters.create(shape)
    made = SharedCounters(descriptor, shape, 0), SharedCounters(descriptor, shape, 1)
    os.close(descriptor)
    return made


def test_a_placement_is_seen_by_the_other_worker_and_leaves_again(
    boards: tuple[SharedCounters, SharedCounters],
) -> None:
    one, other = (FleetView(elsewhere=Sharing(counters)) for counters in boards)
    a = endpoint("a", slot=2)
    facts = Facts(model="m", stream=True, prompt_bytes=len(PROMPT), blocks=chain(PROMPT, 0))
    other.view(a)
    placement = one.view(a).place(facts, 10.0)
    [view] = other.views([a], 10.0)
    assert view.index.held(facts.blocks) == len(facts.blocks)
    assert view.outstanding == len(PROMPT)
    assert view.backlog_s(10.0) == pytest.approx(len(PROMPT) / 32000)
    placement.first_byte(11.0)
    assert view.outstanding == 0
    assert view.backlog_s(11.0) == 0.0
    later = view.place(facts, 10.5)
    later.first_byte(12.0)
    assert later.service_s == pytest.approx(1.0)


def test_requests_of_other_workers_are_under_way_too_W45(boards: tuple[SharedCounters, SharedCounters]) -> None:
    one, other = boards
    fleet, a = FleetView(elsewhere=Sharing(one)), endpoint("a", slot=2)
    fleet.view(a).place(Facts(prompt_bytes=9), 10.0)
    one.add(2, IN_FLIGHT)
    other.add(2, IN_FLIGHT, 3)
    [view] = fleet.views([a], 20.0)
    assert view.in_flight == 4


def test_everything_written_is_read_in_order(boards: tuple[SharedCounters, SharedCounters]) -> None:
    writer, reader = (Sharing(counters) for counters in boards)
    rng = random.Random(1)
    for _ in range(200):
        sent = [
            (rng.getrandbits(64), [rng.getrandbits(64) for _ in range(rng.randrange(200))])
            for _ in range(rng.randrange(12))
        ]
        for tag, blocks in sent:
            writer.placed(tag, blocks)
        assert list(reader.news()) == sent
    assert list(reader.news()) == []


def test_a_reader_that_was_lapped_drops_and_goes_on(boards: tuple[SharedCounters, SharedCounters]) -> None:
    writer, reader = (Sharing(counters) for counters in boards)
    for _ in range(RING_CELLS // 100 + 10):
        writer.placed(1, list(range(100)))
    assert list(reader.news()) == []
    writer.placed(7, [8, 9])
    assert list(reader.news()) == [(7, [8, 9])]


def test_what_a_dead_worker_had_placed_is_gone_with_it(boards: tuple[SharedCounters, SharedCounters]) -> None:
    first, second = boards
    fleet = FleetView(elsewhere=Sharing(second))
    a = endpoint("a", slot=1)
    FleetView(elsewhere=Sharing(first)).view(a).place(Facts(prompt_bytes=500), 0.0)
    assert fleet.view(a).outstanding == 500
    second.clear_in_flight(0)
    assert fleet.view(a).outstanding == 0


@pytest.mark.parametrize("field", range(FIELDS))
def test_every_field_of_one_worker_is_seen_by_the_other(
    boards: tuple[SharedCounters, SharedCounters], field: int
) -> None:
    one, other = boards
    one.put(0, field, 7)
    assert (other.elsewhere(0, field), other.latest_elsewhere(0, field)) == (7, 7)
    assert (one.elsewhere(0, field), one.latest_elsewhere(0, field)) == (0, 0)
