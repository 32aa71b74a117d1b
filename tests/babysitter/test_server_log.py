"""The server's output: rotated without losing the writer, its end shown."""

import os
from pathlib import Path

import pytest

from babysitter.server_log import ServerLog, rotate
from common.log_tail import tail


def test_rotation_keeps_the_writer_and_the_number_of_files_A18(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for number in range(5):
            os.write(writer, b"%d" % number * 10)
            assert rotate(path, limit_bytes=5, keep=2)
        os.write(writer, b"x")
    finally:
        os.close(writer)
    assert path.read_bytes() == b"x"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.log", "out.log.1", "out.log.2"]
    assert (tmp_path / "out.log.1").read_bytes() == b"4" * 10
    assert (tmp_path / "out.log.2").read_bytes() == b"3" * 10


def test_small_or_missing_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    assert not rotate(path, limit_bytes=5, keep=2)
    path.write_bytes(b"12345")
    assert not rotate(path, limit_bytes=5, keep=2)


def test_rotation_with_nothing_kept_just_cuts(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    path.write_bytes(b"123456")
    assert rotate(path, limit_bytes=5, keep=0)
    assert path.read_bytes() == b""


def test_full_disk_cuts_the_file_all_the_same_A18(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.log"
    path.write_bytes(b"123456")

    def full(*_arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("babysitter.server_log.shutil.copyfileobj", full)
    with pytest.raises(OSError, match="disk full"):
        rotate(path, limit_bytes=5, keep=2)
    assert path.stat().st_size == 0
    assert not (tmp_path / "out.log.1").exists()


@pytest.mark.parametrize(
    ("content", "limit", "since", "expected"),
    [
        (b"", 10, 0, ""),
        (b"a\nb\n", 10, 0, "a\nb"),
        (b"aaaa\nbbbb\ncccc\n", 10, 0, "cccc"),
        (b"old\nnew\n", 10, 4, "new"),
        (b"rotated\n", 10, 99, "rotated"),
        (b"\xff\xfe\n", 10, 0, "\ufffd\ufffd"),
    ],
)
def test_tail_begins_at_a_line_and_after_the_mark(
    tmp_path: Path, content: bytes, limit: int, since: int, expected: str
) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    assert tail(path, limit, since=since) == expected


def test_tail_prefers_what_this_attempt_wrote_to_standard_error(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "d" / "out", tmp_path / "d" / "err")
    log.mark()
    log.stdout.write_text("said\n")
    assert log.tail(100) == "said"
    log.stderr.write_text("failed\n")
    assert log.tail(100) == "failed"
    log.mark()
    assert log.tail(100) == ""
