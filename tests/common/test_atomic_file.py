import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.atomic_file import read_bounded, remove_leftovers, write_atomic


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_write_atomic_replaces_the_whole_file_with_the_mode_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomic(path, b"a long first content")
    write_atomic(path, b"second", mode=0o640)
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(tmp_path) == ["state"]


def test_write_atomic_is_private_by_default(tmp_path: Path) -> None:
    write_atomic(tmp_path / "state", b"")
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o600


def test_write_atomic_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"kept")
    (tmp_path / "state").symlink_to("target")
    write_atomic(tmp_path / "state", b"new")
    assert (tmp_path / "target").read_bytes() == b"kept"
    assert not (tmp_path / "state").is_symlink()


def test_a_failed_rename_leaves_no_temporary(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "state", b"x")
    assert names(tmp_path) == ["state"]


def test_a_missing_directory_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "absent" / "state", b"x")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_leaves_the_old_file_and_no_temporary_B9(small_disk: Path) -> None:
    path = small_disk / "state"
    write_atomic(path, b"old")
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(path, b"x" * 200_000)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert names(small_disk) == ["state"]


def test_a_reader_sees_old_or_new_and_never_a_mixture_B4(tmp_path: Path) -> None:
    path = tmp_path / "state"
    contents = {bytes([letter]) * 50_000 for letter in b"ab"}
    write_atomic(path, min(contents))
    stop = threading.Event()
    torn = []

    def read() -> None:
        while not stop.is_set():
            if path.read_bytes() not in contents:
                torn.append(True)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(40):
        for content in contents:
            write_atomic(path, content)
    stop.set()
    reader.join()
    assert torn == []


def test_a_killed_writer_leaves_old_or_new_and_its_leftover_is_removed_B4(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomic(path, b"old")
    code = (
        "import os, sys; from pathlib import Path; from common import atomic_file\n"
        "os.fsync = lambda descriptor: os._exit(137)\n"
        "atomic_file.write_atomic(Path(sys.argv[1]), b'new')\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 137
    assert path.read_bytes() == b"old"
    leftovers = remove_leftovers(path)
    assert [leftover.name.startswith(".state.tmp-") for leftover in leftovers] == [True]
    assert names(tmp_path) == ["state"]


def test_read_bounded_reads_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, limit_bytes=5) == b"12345"
    with pytest.raises(ValueError, match="5 bytes, more than the 4 allowed"):
        read_bounded(path, limit_bytes=4)


def test_read_bounded_refuses_links_and_what_is_no_file_B14(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="symbolic links") as caught:
        read_bounded(tmp_path / "link", limit_bytes=5)
    assert caught.value.errno == errno.ELOOP
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        read_bounded(tmp_path / "pipe", limit_bytes=5)


def test_read_bounded_refuses_a_file_that_says_nothing_of_its_size() -> None:
    with pytest.raises(ValueError, match="grew past the 3 bytes"):
        read_bounded(Path("/proc/self/status"), limit_bytes=3)
