"""A router that was told to stop says so at /ready before it refuses anybody: for balancers, such as Kubernetes'."""

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.babysitter.real import until
from tests.ports import free_port
from tests.registry.processes import environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
LEAVE_S = 3.0


def status(url: str) -> int:
    """Of a GET on a connection of its own; 0 when nobody takes it."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - ours
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


@pytest.mark.parametrize("leave_s", [LEAVE_S, 0.0])
def test_ready_answers_503_first_and_connections_are_taken_until_leave_s_is_over(
    tmp_path: Path, leave_s: float
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    port = url.rpartition(":")[2]
    with (tmp_path / "router.log").open("ab") as log:
        router = subprocess.Popen(
            [sys.executable, "-m", "router", "--port", port, "--workers", "1", "--leave-s", str(leave_s)],
            cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until("it is ready", lambda: status(f"{url}/ready") == 200, 100)
        router.send_signal(signal.SIGTERM)
        told_at, seen = time.monotonic(), []
        while router.poll() is None:
            seen.append((status(f"{url}/ready"), status(f"{url}/v1/models")))
            assert time.monotonic() - told_at < 60
        assert router.returncode == 0
        if leave_s:
            assert time.monotonic() - told_at >= leave_s
            assert (503, 200) in seen, "it says that it leaves, and serves"
            first_refused = next((at for at, pair in enumerate(seen) if 0 in pair), len(seen))
            assert all(pair == (503, 200) for pair in seen[1:first_refused]), seen
        else:
            assert (503, 200) not in seen[1:], "nothing waits unless it is asked to"
    finally:
        if router.poll() is None:
            router.kill()
            router.wait()
