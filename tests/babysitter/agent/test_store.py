"""The root on disk: in and out in one step, nothing half made is ever seen, a full disk leaves nothing behind."""

import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from babysitter.agent.model import Desired, ReplicaRecord
from babysitter.agent.store import ReplicaStore
from babysitter.cbclient.environments import Environments
from babysitter.memory import SavedReplica
from babysitter.state_file import decode
from common.atomic_file import write_atomic
from common.exits import ConfigurationError
from common.wire.words import ReplicaStatus
from tests.babysitter.agent.conftest import WAIT_S, StartAgent, create, reached, wanted

RECORD = ReplicaRecord("abc123def456", 20_000, "r1", "d", "t")
REQUEST = b'{"server_mode": "replica", "model_name": "m"}'


def saved(**members: Any) -> SavedReplica:
    return SavedReplica(replica_id=RECORD.replica_id, **members)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ReplicaStore]:
    made = ReplicaStore(tmp_path / "root")
    made.acquire()
    yield made
    made.release()


def test_what_was_created_is_found_again(store: ReplicaStore) -> None:
    store.create(RECORD, REQUEST, b"{}", saved(status=ReplicaStatus.PENDING))
    assert list(store.records()) == [RECORD]
    assert store.request(RECORD.replica_id).model_name == "m"
    assert store.state(RECORD.replica_id).status == "pending"


def test_the_directory_of_environments_is_no_replica(store: ReplicaStore, capsys: pytest.CaptureFixture[str]) -> None:
    environments = Environments(store.root).directory
    environments.mkdir()
    assert list(store.records()) == []
    assert "replica.unreadable" not in capsys.readouterr().out
    (store.root / "abc123def456").mkdir()
    assert list(store.records()) == []
    assert "replica.unreadable" in capsys.readouterr().out


def test_what_was_cut_is_cleared_away_E3(store: ReplicaStore) -> None:
    for name in (".new-abc123def457", ".gone-abc123def458-1"):
        (store.root / name).mkdir()
        (store.root / name / "request.json").write_bytes(REQUEST)
    assert list(store.records()) == []
    assert sorted(path.name for path in store.root.iterdir()) == ["agent.lock", "state"]


def test_a_state_without_a_directory_is_cleared_away_E3(store: ReplicaStore) -> None:
    store.create(RECORD, REQUEST, b"{}", saved())
    store.directory(RECORD.replica_id).rename(store.root / ".new-abc123def456")
    (store.state_dir / "by-hand.json").write_text("{}")
    assert list(store.records()) == []
    assert [path.name for path in store.state_dir.iterdir()] == ["by-hand.json"]


def test_a_link_is_no_replica_E4(store: ReplicaStore, tmp_path: Path) -> None:
    other = ReplicaStore(tmp_path / "other")
    other.acquire()
    other.create(RECORD, REQUEST, b"{}", saved())
    other.release()
    (store.root / RECORD.replica_id).symlink_to(other.root / RECORD.replica_id)
    assert list(store.records()) == []


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", "", "ABC123DEF456", "abc123def456\n"])
def test_a_name_that_is_no_id_is_never_a_path_E4(store: ReplicaStore, name: str) -> None:
    with pytest.raises(ValueError, match="no replica id"):
        store.directory(name)


def test_a_second_agent_is_refused_E9(store: ReplicaStore) -> None:
    with pytest.raises(ConfigurationError, match=rf"another agent \(pid {os.getpid()}\) has it"):
        ReplicaStore(store.root).acquire()


def test_a_damaged_state_file_is_read_from_its_backup_or_memory_B8(store: ReplicaStore) -> None:
    store.create(RECORD, REQUEST, b"{}", saved(status=ReplicaStatus.CREATING))
    path = store.state_path(RECORD.replica_id)
    assert store.state(RECORD.replica_id).status == "creating"
    path.write_bytes(path.read_bytes()[:-7])
    assert store.state(RECORD.replica_id).status == "creating"
    path.unlink()
    assert store.state(RECORD.replica_id) == saved(status=ReplicaStatus.PENDING)


@pytest.mark.parametrize("damaged", [b"", b"{}", b"\x00" * 100, b"[]", b'{"port": 1}'])
def test_a_damaged_memory_is_read_from_its_backup_B8(store: ReplicaStore, damaged: bytes) -> None:
    store.create(RECORD, REQUEST, b"{}", saved())
    (store.directory(RECORD.replica_id) / "agent.json").write_bytes(damaged)
    assert list(store.records()) == [RECORD]
    store.save(replace(RECORD, desired=Desired.STOPPED))
    assert next(store.records()).desired is Desired.STOPPED


def test_removing_leaves_what_is_shown_and_forgetting_leaves_nothing(store: ReplicaStore) -> None:
    gone = replace(RECORD, desired=Desired.DELETED, over=True)
    store.create(gone, REQUEST, b"{}", saved(status=ReplicaStatus.READY, endpoint="http://h:1"))
    store.close_state(gone.replica_id)
    store.remove(gone)
    assert not store.directory(gone.replica_id).exists()
    assert list(store.records()) == [gone]
    assert store.state(gone.replica_id).status == "stopped"
    assert store.request(gone.replica_id).model_name == "m"
    store.forget(gone.replica_id)
    assert list(store.state_dir.iterdir()) == []


async def test_replicas_of_the_last_version_are_adopted_with_all_that_is_known_of_them(
    start_agent: StartAgent, tmp_path: Path
) -> None:
    """The files are those that the version before the wire had structs wrote, byte by byte."""
    root = tmp_path / "root"
    shutil.copytree(Path(__file__).parent / "last_version", root, copy_function=shutil.copy)
    silent = (sys.executable, "-c", "import time; time.sleep(600)")  # so that nobody writes the state anew
    client = await start_agent(local_workdir_root=root, babysitter_command=silent)
    infos = {}
    for replica_id in ("oldready0001", "oldgone00001"):
        async with client.get(f"/api/v1/replicas/{replica_id}") as answer:
            infos[replica_id] = (await answer.json())["info"]
    ready, gone = infos["oldready0001"], infos["oldgone00001"]
    assert (ready["status"], ready["endpoint"], ready["port"]) == ("ready", "http://127.0.0.1:20000", 20_000)
    assert (ready["multibox"], ready["compile_wsjob"], ready["models"]) == ("dh1", ["wsjob-1"], ["m"])
    assert (ready["created_at"], ready["ready_at"]) == ("2026-11-01T10:00:00.000Z", "2026-11-01T10:05:00.000Z")
    assert ready["metadata"] == {"team": "a", "node": "n1"}
    assert ready["stages"][0]["detail"] == "python -m venv"
    assert (gone["status"], gone["endpoint"], gone["model_name"]) == ("stopped", "NA", "m")
    assert gone["metadata"] == {"team": "a", "node": "n1", "deleted": True}
    async with client.get("/api/v1/replicas/oldready0001/timeline") as answer:
        timeline = await answer.json()
    assert timeline["transitions"][0]["to"] == "ready"
    assert timeline["jobs"]["cancelled"]["wsjob-0"]["output"] == "ok"
    async with client.post("/api/v1/replicas", json=wanted(request_id="request-oldready0001")) as answer:
        assert (answer.status, (await answer.json())["replica_id"]) == (409, "oldready0001")


def test_a_root_has_one_path_however_it_is_written(store: ReplicaStore, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store.root)
    assert ReplicaStore(tmp_path / "link").root == ReplicaStore(store.root / ".." / store.root.name).root == store.root


def test_the_roots_own_id_stays(store: ReplicaStore) -> None:
    assert store.own_id() == ReplicaStore(store.root).own_id()


async def test_a_disk_that_refuses_for_a_while_is_asked_again_B9(
    start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("babysitter.agent.disk.RETRY_S", 0.05)
    refusals = iter([OSError(errno.EROFS, "read-only")] * 3)
    remove = ReplicaStore.remove

    def refuse(self: ReplicaStore, record: ReplicaRecord) -> None:
        for error in refusals:
            raise error
        remove(self, record)

    monkeypatch.setattr(ReplicaStore, "remove", refuse)
    client = await start_agent(stopped_retention_s=0)
    replica_id = await create(client)
    async with client.delete(f"/api/v1/replicas/{replica_id}") as answer:
        assert answer.status == 200
    await reached(client, replica_id, "")


def let_disk_refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A disk that takes no checked file from the agent, until the answer is called."""
    monkeypatch.setattr("babysitter.agent.disk.RETRY_S", 0.05)
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


def test_a_state_that_cannot_be_closed_is_told_B9(store: ReplicaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create(RECORD, REQUEST, b"{}", saved(status=ReplicaStatus.READY))
    make_room = let_disk_refuse(monkeypatch)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        store.close_state(RECORD.replica_id)
    make_room()
    store.close_state(RECORD.replica_id)
    assert store.state(RECORD.replica_id).status == "stopped"


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
