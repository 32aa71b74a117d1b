"""The root on disk: in and out in one step, nothing half made is ever seen, a full disk leaves nothing behind."""

import asyncio
import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from babysitter.agent.house import House
from babysitter.agent.model import Desired, Tenancy
from babysitter.cbclient.environments import Environments
from babysitter.state_file import decode
from common.atomic_file import write_atomic
from common.service import ConfigurationError
from tests.babysitter.agent.conftest import WAIT_S, StartAgent, create, reached, wanted

TENANCY = Tenancy("abc123def456", 20_000, "r1", "d", "t")
REQUEST = b'{"server_mode": "replica", "model_name": "m"}'


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "root")
    made.acquire()
    yield made
    made.release()


def test_what_moved_in_is_found_again(house: House) -> None:
    house.move_in(TENANCY, REQUEST, {"host": "h"}, {"status": "pending"})
    assert list(house.tenancies()) == [TENANCY]
    assert house.request(TENANCY.replica_id)["model_name"] == "m"
    assert house.told(TENANCY.replica_id)["status"] == "pending"


def test_the_directory_of_environments_is_no_replica(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    environments = Environments(house.root).directory
    environments.mkdir()
    assert list(house.tenancies()) == []
    assert "replica.unreadable" not in capsys.readouterr().out
    (house.root / "abc123def456").mkdir()
    assert list(house.tenancies()) == []
    assert "replica.unreadable" in capsys.readouterr().out


def test_what_was_cut_is_cleared_away_E3(house: House) -> None:
    for name in (".new-abc123def457", ".gone-abc123def458-1"):
        (house.root / name).mkdir()
        (house.root / name / "request.json").write_bytes(REQUEST)
    assert list(house.tenancies()) == []
    assert sorted(path.name for path in house.root.iterdir()) == ["agent.lock", "state"]


def test_a_state_without_a_directory_is_cleared_away_E3(house: House) -> None:
    house.move_in(TENANCY, REQUEST, {}, {})
    house.directory(TENANCY.replica_id).rename(house.root / ".new-abc123def456")
    (house.state / "by-hand.json").write_text("{}")
    assert list(house.tenancies()) == []
    assert [path.name for path in house.state.iterdir()] == ["by-hand.json"]


def test_a_link_is_no_replica_E4(house: House, tmp_path: Path) -> None:
    other = House(tmp_path / "other")
    other.acquire()
    other.move_in(TENANCY, REQUEST, {}, {})
    other.release()
    (house.root / TENANCY.replica_id).symlink_to(other.root / TENANCY.replica_id)
    assert list(house.tenancies()) == []


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", "", "ABC123DEF456", "abc123def456\n"])
def test_a_name_that_is_no_id_is_never_a_path_E4(house: House, name: str) -> None:
    with pytest.raises(ValueError, match="no replica id"):
        house.directory(name)


def test_a_second_agent_is_refused_E9(house: House) -> None:
    with pytest.raises(ConfigurationError, match=rf"another agent \(pid {os.getpid()}\) has it"):
        House(house.root).acquire()


def test_a_damaged_state_file_is_read_from_its_backup_or_memory_B8(house: House) -> None:
    house.move_in(TENANCY, REQUEST, {}, {"status": "pending"})
    path = house.state_path(TENANCY.replica_id)
    assert house.told(TENANCY.replica_id)["status"] == "pending"
    path.write_bytes(path.read_bytes()[:-7])
    assert house.told(TENANCY.replica_id)["status"] == "pending"
    path.unlink()
    assert house.told(TENANCY.replica_id) == {}


@pytest.mark.parametrize("damaged", [b"", b"{}", b"\x00" * 100, b"[]", b'{"port": 1}'])
def test_a_damaged_memory_is_read_from_its_backup_B8(house: House, damaged: bytes) -> None:
    house.move_in(TENANCY, REQUEST, {}, {})
    (house.directory(TENANCY.replica_id) / "agent.json").write_bytes(damaged)
    assert list(house.tenancies()) == [TENANCY]
    house.save(replace(TENANCY, desired=Desired.STOPPED))
    assert next(house.tenancies()).desired is Desired.STOPPED


def test_moving_out_leaves_what_is_shown_and_forgetting_leaves_nothing(house: House) -> None:
    gone = replace(TENANCY, desired=Desired.DELETED, over=True)
    house.move_in(gone, REQUEST, {}, {"status": "ready", "endpoint": "http://h:1"})
    house.close_state(gone.replica_id)
    house.move_out(gone)
    assert not house.directory(gone.replica_id).exists()
    assert list(house.tenancies()) == [gone]
    assert house.told(gone.replica_id)["status"] == "stopped"
    assert house.request(gone.replica_id)["model_name"] == "m"
    house.forget(gone.replica_id)
    assert list(house.state.iterdir()) == []


def test_a_root_has_one_path_however_it_is_written(house: House, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(house.root)
    assert House(tmp_path / "link").root == House(house.root / ".." / house.root.name).root == house.root


def test_the_roots_own_id_stays(house: House) -> None:
    assert house.own_id() == House(house.root).own_id()


async def test_a_disk_that_refuses_for_a_while_is_asked_again_B9(
    start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("babysitter.agent.keeper.DISK_RETRY_S", 0.05)
    refusals = iter([OSError(errno.EROFS, "read-only")] * 3)
    move_out = House.move_out

    def refuse(self: House, tenancy: Tenancy) -> None:
        for error in refusals:
            raise error
        move_out(self, tenancy)

    monkeypatch.setattr(House, "move_out", refuse)
    client = await start_agent(stopped_retention_s=0)
    replica_id = await create(client)
    async with client.delete(f"/api/v1/replicas/{replica_id}") as answer:
        assert answer.status == 200
    await reached(client, replica_id, "")


def let_disk_refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A disk that takes no checked file from the agent, until the answer is called."""
    monkeypatch.setattr("babysitter.agent.keeper.DISK_RETRY_S", 0.05)
    full = [True]

    def write(path: Path, data: bytes) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_atomic(path, data)

    monkeypatch.setattr("babysitter.state_file.write_atomic", write)
    return full.clear


async def test_a_stop_that_a_full_disk_did_not_take_is_written_later_B9(
    start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = await start_agent()
    replica_id = await create(client)
    await reached(client, replica_id, "ready")
    make_room = let_disk_refuse(monkeypatch)
    async with client.post(f"/api/v1/replicas/{replica_id}/stop", json={}) as answer:
        assert answer.status == 200
    await reached(client, replica_id, "stopped")
    make_room()
    file = tmp_path / "root" / replica_id / "agent.json"
    async with asyncio.timeout(WAIT_S):
        while not decode(file.read_bytes())["over"]:
            await asyncio.sleep(0.03)
    assert decode(file.read_bytes())["desired"] == "stopped"


async def test_a_full_disk_does_not_keep_a_replica_from_being_removed_B9(
    start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start_agent(stopped_retention_s=0)
    replica_id = await create(client)
    await reached(client, replica_id, "ready")
    let_disk_refuse(monkeypatch)
    async with client.post(f"/api/v1/replicas/{replica_id}/stop", json={}) as answer:
        assert answer.status == 200
    await reached(client, replica_id, "stopped")
    async with client.delete(f"/api/v1/replicas/{replica_id}") as answer:
        assert answer.status == 200
    await reached(client, replica_id, "")


def test_a_state_that_cannot_be_closed_is_told_B9(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.move_in(TENANCY, REQUEST, {}, {"status": "ready"})
    make_room = let_disk_refuse(monkeypatch)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        house.close_state(TENANCY.replica_id)
    make_room()
    house.close_state(TENANCY.replica_id)
    assert house.told(TENANCY.replica_id)["status"] == "stopped"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of very few inodes."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=40,size=4m", "tmpfs", str(place)], check=False)
    if done.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


async def test_a_full_disk_is_507_and_leaves_nothing_E7(start_agent: StartAgent, small_disk: Path) -> None:
    client = await start_agent(local_workdir_root=small_disk / "root")
    for number in range(200):
        with suppress(OSError):
            (small_disk / f"fill-{number}").touch()
    before = sorted(str(path) for path in small_disk.rglob("*"))
    async with client.post("/api/v1/replicas", json=wanted(request_id="r1")) as answer:
        assert answer.status == 507
        assert os.strerror(errno.ENOSPC) in (await answer.json())["error"]
    assert sorted(str(path) for path in small_disk.rglob("*")) == before
    for number in range(200):
        (small_disk / f"fill-{number}").unlink(missing_ok=True)
    async with client.post("/api/v1/replicas", json=wanted(request_id="r1")) as answer:
        assert answer.status == 201, "the same request may be made again"
        replica_id = (await answer.json())["replica_id"]
    assert json.loads((small_disk / "root" / replica_id / "request.json").read_text())["request_id"] == "r1"
    async with client.delete(f"/api/v1/replicas/{replica_id}") as answer:
        assert answer.status == 200
