"""What systemd hears of a service, and what a service takes from it: with real processes and a socket in systemd's place."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from common import own_python, systemd
from tests.ports import free_port

REGISTRY = [sys.executable, "-m", "registry", "--store", "memory://"]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Where NOTIFY_SOCKET leads."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(60)
        yield made


@contextmanager
def process(argv: list[str], **more: object) -> Iterator[subprocess.Popen[bytes]]:
    child: subprocess.Popen[bytes] = subprocess.Popen(argv, **more)  # type: ignore[call-overload] # as the caller has it
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def test_a_service_says_when_it_serves_reads_again_and_ends_W59(manager: socket.socket, tmp_path: Path) -> None:
    env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
    port = free_port()
    with process([*REGISTRY, "--port", str(port)], env=env) as child:
        assert manager.recv(100) == b"READY=1"
        with closing(socket.create_connection(("127.0.0.1", port), 5)):
            pass
        child.send_signal(signal.SIGHUP)
        assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert manager.recv(100) == b"READY=1"
        child.terminate()
        assert manager.recv(100) == b"STOPPING=1"
        assert child.wait(30) == 0


def test_a_start_that_fails_is_never_called_ready_W59(manager: socket.socket, tmp_path: Path) -> None:
    env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        argv = [*REGISTRY, "--port", str(taken.getsockname()[1])]
        done = subprocess.run(argv, env=env, capture_output=True, check=False, timeout=60)
    assert done.returncode == 78
    manager.settimeout(0.1)
    with pytest.raises(TimeoutError):
        manager.recv(100)


def test_an_abstract_socket_is_told_too_and_a_deaf_one_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0svc-test-{os.getpid()}")
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@svc-test-{os.getpid()}")
        systemd.ready()
        assert manager.recv(100) == b"READY=1"
    systemd.ready()
    assert "systemd cannot be told 'READY=1'" in capsys.readouterr().err


def journal(of: int) -> str:
    status = os.fstat(of)
    return f"{status.st_dev}:{status.st_ino}"


@pytest.mark.parametrize("is_ours", [True, False])
def test_lines_have_the_journals_priorities_where_standard_error_is_the_journal_W59(*, is_ours: bool) -> None:
    code = (
        "import logging, structlog; from common import log; log.setup('x', level='debug')\n"
        "structlog.get_logger().debug('a'); structlog.get_logger().info('b'); structlog.get_logger().error('c')\n"
        "logging.getLogger('aiohttp').warning('d')"
    )
    reading, writing = os.pipe()
    with open(reading) as said:  # noqa: PTH123 - a descriptor
        env = {**os.environ, "JOURNAL_STREAM": journal(writing) if is_ours else "1:2"}
        subprocess.run([sys.executable, "-c", code], stderr=writing, env=env, check=True, timeout=60)
        os.close(writing)
        lines = said.read().splitlines()
    expected = ["<7>", "<6>", "<3>", "<4>"] if is_ours else [""] * 4
    assert [line.partition("{")[0] for line in lines] == expected
    assert [json.loads(line[len(prefix) :])["event"] for line, prefix in zip(lines, expected, strict=True)] == [*"abcd"]


def test_a_fault_of_the_settings_is_an_error_in_the_journal_W59() -> None:
    reading, writing = os.pipe()
    with open(reading) as said:  # noqa: PTH123 - a descriptor
        env = {**os.environ, "JOURNAL_STREAM": journal(writing), "SVC_REGISTRY_PORT": "no"}
        subprocess.run([sys.executable, "-m", "registry"], stderr=writing, env=env, check=False, timeout=60)
        os.close(writing)
        assert said.read().startswith("<3>svc-registry: error: environment SVC_REGISTRY_PORT")


def test_what_systemd_told_a_process_is_not_told_to_its_children_W59() -> None:
    told = dict.fromkeys(systemd.PRIVATE, "1")
    assert own_python.given({**told, "A": "b"}) == {"A": "b"}
    assert not told.keys() & own_python.environment(told).keys()


def test_variables_that_a_reload_cannot_change_are_named_W59(tmp_path: Path) -> None:
    env = {**os.environ, "SVC_REGISTRY_HEALTH_INTERVAL": "7"}
    log = tmp_path / "log"
    with log.open("wb") as out, process([*REGISTRY, "--port", str(free_port())], env=env, stderr=out) as child:
        wait_for(log, "service.listening")
        child.send_signal(signal.SIGHUP)
        wait_for(log, "config.reloaded")
    [line] = [json.loads(line) for line in log.read_text().splitlines() if "config.reloaded" in line]
    assert line["as_started"] == ["SVC_REGISTRY_HEALTH_INTERVAL"]


def wait_for(log: Path, word: str) -> None:
    async def look() -> None:
        while word not in log.read_text():
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(look(), 60))
