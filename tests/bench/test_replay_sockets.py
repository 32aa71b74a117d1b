"""The replay with a real router, real sockets and very few requests."""

import shutil
from pathlib import Path

import pytest

from bench.replay import sockets
from bench.replay.model_engine import Kind
from bench.replay.offline import Setup
from bench.replay.traces import Request

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("taskset") is None, reason="the bench puts every router on a core of its own"),
]


def test_a_short_trace_goes_through_a_real_router(tmp_path: Path) -> None:
    """Two conversations of six turns: every turn but the first finds its beginning where the last one was."""
    requests = [
        Request(turn * 8.0 + talk, 512 * (turn + 4), 4, tuple(range(talk * 1000, talk * 1000 + turn + 4)))
        for turn in range(6)
        for talk in range(2)
    ]
    setup = Setup(kinds=(Kind(),) * 2, reports=True)
    place = sockets.Place(tmp_path, 0, 0, 1, 20.0, 2.0)
    measured = sockets.replay(requests, setup, "cost", "", place)
    outcome = measured.outcome
    assert (measured.faults, measured.first_fault) == (0, "")
    assert len(outcome.ttft_s) == len(requests)
    assert outcome.blocks == sum(len(request.blocks) for request in requests)
    assert outcome.hit_blocks == sum(len(request.blocks) - 1 for request in requests if len(request.blocks) > 4)
    assert all(outcome.read_tokens)
    assert measured.cpu_us > 0
