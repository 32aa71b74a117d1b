"""The state file: never torn, never believed blindly, never lost without a word."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from babysitter import state_file
from babysitter.memory import Memory, read_memory, read_saved
from babysitter.run_meta import Jobs
from babysitter.state_file import StateFile
from common.wire.replica import CancelledJob, Transition


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    found = StateFile(tmp_path / "state" / "r.json")
    found.load(stamp="t0")
    return found


def transition(after: str) -> Transition:
    return Transition(at="2026-01-01T00:00:00.000Z", before="pending", after=after, cause="x")


def reread(file: StateFile) -> dict[str, Any]:
    return StateFile(file.path).load(stamp="t1")


def test_load_gives_back_what_was_saved(file: StateFile) -> None:
    assert file.save({"status": "ready", "n": [1, None, "ä"]})
    content = reread(file)
    assert (content["status"], content["n"], content["seq"], content["schema"]) == ("ready", [1, None, "ä"], 1, 1)


def test_absent_file_is_an_empty_memory(file: StateFile) -> None:
    assert reread(file) == {}


def test_load_clears_what_a_killed_writer_left_and_nothing_of_others_B4(file: StateFile) -> None:
    file.save({"status": "ready"})
    beside = file.path.parent
    ours = [beside / ".r.json.tmp-7-abcd", beside / ".r.json.bak.tmp-7"]
    others = [beside / ".r2.json.tmp-8-abcd", beside / ".r.json.notes"]
    for path in (*ours, *others):
        path.write_bytes(b"half")
    assert reread(file)["status"] == "ready"
    assert [path.exists() for path in (*ours, *others)] == [False, False, True, True]


def test_file_is_private(file: StateFile) -> None:
    file.save({})
    assert file.path.stat().st_mode & 0o077 == 0


def test_sequence_goes_on_after_a_restart(file: StateFile) -> None:
    file.save({})
    file.save({})
    again = StateFile(file.path)
    again.load(stamp="t")
    again.save({})
    assert json.loads(file.path.read_bytes())["seq"] == 3


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\x00\xff\x00",
        b"[]",
        b"NaN",
        b'{"schema": 99, "seq": 1}',
        b'{"schema": 1, "seq": 1, "crc32": 1, "status": "ready"}',
        b"[" * 100_000,
        b" " * (state_file.LIMIT_BYTES + 1),
    ],
    ids=["empty", "torn", "binary", "list", "nan", "future", "forged", "deep", "huge"],
)
def test_corrupt_file_is_put_aside_and_the_backup_used_B8(file: StateFile, damage: bytes) -> None:
    file.save({"status": "starting"})
    file.save({"status": "ready"})
    file.path.write_bytes(damage)
    assert reread(file)["status"] == "starting"
    aside = file.path.with_name("r.json.corrupt-t1")
    assert aside.read_bytes() == damage


def test_corrupt_file_and_backup_give_an_empty_memory_B8(file: StateFile) -> None:
    file.save({})
    file.save({})
    for path in (file.path, file.backup):
        path.write_bytes(b"x")
    assert reread(file) == {}
    assert len(list(file.path.parent.glob("*.corrupt-*"))) == 2


def test_truncation_at_every_length_is_noticed_B4(file: StateFile) -> None:
    file.save({"status": "old"})
    file.save({"status": "new"})
    whole = file.path.read_bytes()
    for length in range(len(whole) - 1):
        with pytest.raises(ValueError, match=r".*"):
            state_file.decode(whole[:length])


def test_symbolic_link_is_not_followed(file: StateFile, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(state_file.encode({"status": "forged"}, 1))
    file.path.symlink_to(tmp_path / "elsewhere")
    assert reread(file) == {}


def test_refused_write_is_told_and_the_old_file_is_whole_B9(file: StateFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.save({"status": "old"})

    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(state_file, "write_atomic", full)
    assert not file.save({"status": "new"})
    assert file.failure is not None
    assert "No space left" in file.failure
    assert reread(file)["status"] == "old"
    monkeypatch.undo()
    assert file.save({"status": "new"})
    assert file.failure is None


def test_memory_survives_a_round_trip() -> None:
    memory = Memory(instance_id="i", incarnation=3, attempt="u", restarts=2, models=[{"id": "m"}])
    memory.jobs.add("u", Jobs(("c1",), ("e1",)))
    memory.jobs.cancelled["c1"] = CancelledJob(at="t", code=0)
    memory.remember(transition("ready"))
    assert read_memory(json.loads(msgspec.json.encode({"memory": memory}))) == memory


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        [],
        {"incarnation": "x", "attempt": 7, "models": [1], "timeline": {}, "jobs": {"attempts": 7}},
        {"jobs": {"attempts": {"a": {"compile": [7]}}, "cancelled": {"x": 1}}},
    ],
)
def test_memory_of_nonsense_is_a_fresh_one(value: Any) -> None:
    assert read_memory({"memory": value}) == Memory()


def test_content_of_no_replica_is_none() -> None:
    assert read_saved({}) is None
    assert read_saved({"replica_id": "r1", "memory": {"attempts": 2}, "port": "x"}) is not None


def test_timeline_is_bounded() -> None:
    memory = Memory()
    for n in range(1000):
        memory.remember(transition(str(n)))
    assert len(memory.timeline) == 200
    assert memory.timeline[-1].after == "999"
