"""The registry as a process: start, kill, start again."""

import signal
import stat
import subprocess
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.ports import free_port
from tests.registry.conftest import body
from tests.registry.processes import command, environment, running

pytestmark = pytest.mark.e2e


async def test_record_survives_kill_9_with_a_full_lease_C2(tmp_path: Path) -> None:
    async with ClientSession() as session:
        with running(tmp_path) as (process, url):
            async with session.post(f"{url}/services", json=body("kept", metadata={"a": 1})) as answer:
                assert answer.status == 201
                before = (await answer.json())["service"]
            async with session.post(f"{url}/services", json=body("gone")) as answer:
                assert answer.status == 201
            async with session.delete(f"{url}/services/gone") as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
        with running(tmp_path) as (process, url):
            async with session.get(f"{url}/services") as answer:
                (after,) = (await answer.json())["services"]
            assert {**after, "last_heartbeat": 0, "health_status": ""} == {
                **before,
                "last_heartbeat": 0,
                "health_status": "",
            }
            assert after["last_heartbeat"] > before["last_heartbeat"]
            assert after["is_healthy"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


def test_taken_port_is_exit_78_with_its_holder(tmp_path: Path) -> None:
    with running(tmp_path) as (process, url):
        port = url.rpartition(":")[2]
        second = subprocess.run(
            command("--port", port),
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            check=False,
        )
    assert second.returncode == 78
    assert f"127.0.0.1:{port} is taken by pid {process.pid}" in second.stderr.decode()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--host", "0.0.0.0"], "refusing to listen on 0.0.0.0 without tokens"),
        (["--store", "redis://h"], "--store redis://h"),
        (["--health-interval", "0"], "--health-interval"),
        (["--config", "missing.toml"], "missing.toml"),
        (["--data-dir", "file"], "file"),
    ],
)
def test_unusable_settings_are_exit_78_and_named(tmp_path: Path, flags: list[str], named: str) -> None:
    (tmp_path / "file").write_text("in the way")
    port = str(free_port())
    done = subprocess.run(
        command("--port", port, *flags), cwd=tmp_path, env=environment(), capture_output=True, check=False, timeout=20
    )
    assert done.returncode == 78, done.stderr.decode()
    assert named in done.stderr.decode()


def test_unknown_key_in_the_file_is_named_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("prot = 1\n")
    done = subprocess.run(
        command("--config", "r.toml"), cwd=tmp_path, env=environment(), capture_output=True, check=False, timeout=20
    )
    assert done.returncode == 78
    assert "r.toml: unknown key 'prot' (did you mean 'port'?)" in done.stderr.decode()
