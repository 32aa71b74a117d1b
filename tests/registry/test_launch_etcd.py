"""`script/launch_etcd.sh` for real, in a copy of the scripts so that nobody's own etcd is in the way."""

import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.registry.etcd import require_etcd
from tests.registry.processes import ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.e2e


@pytest.fixture
def ports() -> dict[str, str]:
    return {"ETCD_PORT": str(free_port()), "ETCD_PEER_PORT": str(free_port())}


@pytest.fixture
def run(tmp_path: Path, ports: dict[str, str]) -> Iterator[Run]:
    shutil.copytree(ROOT / "script", tmp_path / "script")

    def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(tmp_path / "script" / "launch_etcd.sh"), *arguments],
            env={**os.environ, **ports, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=40,
        )

    yield launch
    launch("stop")


def test_launch_starts_once_and_stop_ends_it(run: Run, ports: dict[str, str], tmp_path: Path) -> None:
    require_etcd()
    first = run()
    assert first.returncode == 0, first.stderr
    assert f"etcd://127.0.0.1:{ports['ETCD_PORT']}" in first.stdout
    with urllib.request.urlopen(f"http://127.0.0.1:{ports['ETCD_PORT']}/health") as answer:
        assert b"true" in answer.read()
    pid = (tmp_path / "logs" / "etcd.pid").read_text().strip()
    assert b"--auto-compaction-retention=1h" in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert (tmp_path / "data" / "etcd").stat().st_mode & 0o077 == 0
    again = run()
    assert (again.returncode, f"runs already (pid {pid})" in again.stdout) == (0, True)
    stopped = run("stop")
    assert (stopped.returncode, f"stopped (pid {pid})" in stopped.stdout) == (0, True)
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{ports['ETCD_PORT']}/health")
    assert "not running" in run("stop").stdout


def test_launch_on_a_taken_port_fails_with_the_log(run: Run, ports: dict[str, str]) -> None:
    require_etcd()
    failed = run(ETCD_PEER_PORT=ports["ETCD_PORT"])
    assert failed.returncode == 1
    assert "address already in use" in failed.stderr


def test_launch_with_a_bad_port_is_exit_78_and_named(run: Run) -> None:
    failed = run(ETCD_PORT="many")
    assert failed.returncode == 78
    assert "ETCD_PORT" in failed.stderr
