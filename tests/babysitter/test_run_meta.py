"""Job ids: read from any file, kept in order, never lost."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import structlog

from babysitter.run_meta import LIMIT_BYTES, Jobs, Ledger, UnusableRunMeta, parse
from babysitter.run_meta_tail import RunMetaTail, mark_of
from common.wire.replica import CancelledJob

FULL = {
    "compile_jobs": [{"id": "wsjob-1", "x": 1}, {"id": "wsjob-2"}],
    "execute_jobs": [{"id": "wsjob-3"}],
    "other": {},
}


@pytest.mark.parametrize(
    ("body", "jobs"),
    [
        (FULL, Jobs(("wsjob-1", "wsjob-2"), ("wsjob-3",))),
        ({}, Jobs()),
        ({"compile_jobs": None, "execute_jobs": {}}, Jobs()),
        ({"compile_jobs": ["wsjob-1", "wsjob-1", {"id": 7}, {"name": "x"}, None, ""]}, Jobs(("wsjob-1",))),
        ({"compile_jobs": [{"id": "--all"}, {"id": "a\nb"}, {"id": "x" * 999}]}, Jobs()),
    ],
)
def test_parse_takes_the_ids_it_can_B14(body: Any, jobs: Jobs) -> None:
    assert parse(json.dumps(body).encode()) == jobs


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[]", b"7", b"null", b"[" * 200_000, b" " * (LIMIT_BYTES + 1)])
def test_parse_of_anything_else_is_a_value_B14(raw: bytes) -> None:
    assert isinstance(parse(raw), UnusableRunMeta)


def test_file_cut_at_any_byte_never_gives_a_wrong_id_B14() -> None:
    raw = json.dumps(FULL).encode()
    for length in range(len(raw)):
        assert isinstance(parse(raw[:length]), UnusableRunMeta)


def test_ledger_keeps_first_seen_order_per_attempt() -> None:
    ledger = Ledger()
    assert ledger.add("a1", Jobs(("c1",), ()))
    assert ledger.add("a1", Jobs(("c1", "c2"), ("e1",)))
    assert not ledger.add("a1", Jobs(("c2", "c1"), ("e1",)))
    assert ledger.add("a2", Jobs(("c1", "c3"), ("e2",)))
    assert ledger.all("compile") == ("c1", "c2", "c3")
    assert ledger.all("execute") == ("e1", "e2")
    assert ledger.attempts["a2"] == {"compile": ["c3"], "execute": ["e2"]}


def test_orphans_are_the_jobs_of_dead_attempts_not_yet_cancelled() -> None:
    ledger = Ledger()
    ledger.add("a1", Jobs(("c1",), ("e1",)))
    ledger.add("a2", Jobs(("c2",), ()))
    assert ledger.orphans("a2") == ("c1", "e1")
    ledger.cancelled["c1"] = CancelledJob(code=0)
    assert ledger.orphans("a2") == ("e1",)
    assert ledger.orphans(None) == ("e1", "c2")


class Follower:
    """A tail and what it told."""

    def __init__(self, path: Path, *, stale: bool = False) -> None:
        self.told: list[Jobs] = []
        self.tail = RunMetaTail(path, mark_of(path) if stale else None, self.told.append)


def test_file_of_an_earlier_run_is_not_believed_until_it_changes_B14(tmp_path: Path) -> None:
    path = tmp_path / "run_meta.json"
    path.write_text(json.dumps(FULL))
    follower = Follower(path, stale=True)
    follower.tail.look()
    assert follower.told == []
    path.write_text(json.dumps({"compile_jobs": [{"id": "wsjob-9"}]}))
    follower.tail.look()
    assert follower.told == [Jobs(("wsjob-9",), ())]


def test_file_written_byte_by_byte_warns_once_and_tells_once_B14(tmp_path: Path) -> None:
    path = tmp_path / "run_meta.json"
    follower = Follower(path)
    raw = json.dumps(FULL).encode()
    with structlog.testing.capture_logs() as logs:
        follower.tail.look()
        for length in range(1, len(raw) + 1):
            path.write_bytes(raw[:length])
            follower.tail.look()
        follower.tail.look()
    assert follower.told == [Jobs(("wsjob-1", "wsjob-2"), ("wsjob-3",))]
    assert len(logs) == 1


def test_link_and_huge_file_are_not_read_B14(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps(FULL))
    link = tmp_path / "run_meta.json"
    link.symlink_to(secret)
    follower = Follower(link)
    assert isinstance(follower.tail.look(), UnusableRunMeta)
    link.unlink()
    with link.open("wb") as file:
        os.truncate(file.fileno(), LIMIT_BYTES + 1)
    assert isinstance(follower.tail.look(), UnusableRunMeta)
    assert follower.told == []
