import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import lock_file

HOLD = "import sys; from pathlib import Path; from common import lock_file; lock_file.take(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def holder(path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process


def test_a_held_file_names_its_holder(path: Path, holder: "subprocess.Popen[bytes]") -> None:
    with pytest.raises(lock_file.Held) as error:
        lock_file.take(path)
    assert error.value.by == f" (pid {holder.pid})"
    assert lock_file.is_held(path)


def test_a_look_neither_makes_nor_changes_the_file(path: Path) -> None:
    assert not lock_file.is_held(path)
    assert not path.exists()
    path.write_text("7\n")
    assert not lock_file.is_held(path)
    assert path.read_text() == "7\n"


def test_a_block_holds_the_file_and_no_longer(path: Path) -> None:
    with lock_file.held(path):
        assert path.read_text() == f"{os.getpid()}\n"
        assert lock_file.is_held(path)
        with pytest.raises(lock_file.Held), lock_file.held(path):
            pass
    assert not lock_file.is_held(path)


async def test_a_wait_ends_when_the_holder_does(path: Path, holder: "subprocess.Popen[bytes]") -> None:
    waiting = asyncio.create_task(lock_file.wait(path))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    holder.kill()
    os.close(await asyncio.wait_for(waiting, 10))


def test_a_link_is_never_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    path.symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic links"):
        lock_file.take(path)
    assert not lock_file.is_held(path)
