"""Two hundred replicas on one node: few servers are spawned at a time, and heartbeats do not fall into step (B19)."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from babysitter.slots import Slots
from common.discovery.lease import Lease
from tests.babysitter.real import light, until

HEARTBEAT_S = 5.0


@contextlib.contextmanager
def taken(directory: Path, count: int) -> Iterator[None]:
    """All slots of a node, held by somebody else."""
    directory.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        for number in range(count):
            descriptor = os.open(directory / str(number), os.O_RDWR | os.O_CREAT, 0o600)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


async def test_two_hundred_starts_are_four_at_a_time_B19(tmp_path: Path) -> None:
    now = most = done = 0

    async def start() -> None:
        nonlocal now, most, done
        async with Slots(4, directory=tmp_path / "slots").held(lambda: True):
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1
            done += 1

    await asyncio.gather(*(start() for _ in range(200)))
    assert (most, done) == (4, 200)


async def test_start_that_is_no_longer_wanted_waits_no_longer(tmp_path: Path) -> None:
    wishes = iter([True, True, False])
    with taken(tmp_path, 1):
        async with asyncio.timeout(10), Slots(1, directory=tmp_path).held(lambda: next(wishes)):
            assert next(wishes, "all used") == "all used"


async def test_slots_that_hang_or_cannot_be_used_keep_no_server_from_its_start(tmp_path: Path) -> None:
    with taken(tmp_path, 1):
        async with asyncio.timeout(10), Slots(1, directory=tmp_path, patience_s=0.1).held(lambda: True):
            pass
    (tmp_path / "file").touch()
    async with asyncio.timeout(10), Slots(1, directory=tmp_path / "file").held(lambda: True):
        pass


def test_babysitter_waits_for_a_slot_and_can_be_stopped_meanwhile_B19(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    slots = tmp_path / f"svc-babysitter-starts-{os.geteuid()}"
    with light(tmp_path, restarts={"start_slots": 2}) as node:
        with taken(slots, 2):
            first = node.start()
            node.status("starting")
            first.terminate()
            assert first.wait(60) == 0
            assert node.attempts() == []
            node.start()
            node.status("starting")
            until("intent", lambda: node.state()["memory"]["attempt"])
            assert node.processes() == []
        node.ready()
        with taken(slots, 2):  # a server that runs holds none
            assert len(node.processes()) == 1


@pytest.mark.parametrize("seed", [1, 2])
async def test_heartbeats_are_spread_by_a_tenth_B19(seed: int) -> None:
    pauses: list[float] = []

    class Counted(Lease):
        async def _sleep(self, seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 200:
                raise asyncio.CancelledError

    lease = Counted(cast("Any", SimpleNamespace(least_interval_s=0.0)), lambda: None, cast("Any", None), HEARTBEAT_S)
    lease._rng.seed(seed)
    with pytest.raises(asyncio.CancelledError):
        await lease.keep()
    assert HEARTBEAT_S * 0.9 <= min(pauses) < HEARTBEAT_S * 0.92
    assert HEARTBEAT_S * 1.08 < max(pauses) <= HEARTBEAT_S * 1.1
    assert len(set(pauses)) == 200
