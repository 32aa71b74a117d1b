"""A server's output is followed wherever the server writes it: renamed, copied and cut, removed (W27)."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from babysitter.held_file import HeldFile
from babysitter.server_log import ServerLog
from tests.babysitter.real import PROJECT, ask, debian, running, until
from tests.ports import free_port


class Writer:
    """A server's end of its output: opened once, appended to for ever."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(self, text: str) -> None:
        os.write(self.descriptor, text.encode())


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ServerLog]:
    made = ServerLog(tmp_path / "out.log", tmp_path / "err.log")
    made.mark()
    yield made
    made.close()


@pytest.fixture
def writer(log: ServerLog) -> Iterator[Writer]:
    made = Writer(log.stdout)
    yield made
    os.close(made.descriptor)


def test_renamed_file_is_followed_under_its_name_and_kept_as_it_was_W27(log: ServerLog, writer: Writer) -> None:
    writer.say("before\n")
    log.look()
    aside = log.stdout.with_name("out.log-20260101")
    log.stdout.rename(aside)
    log.stdout.touch()  # as logrotate's `create` does
    log.look()
    for number in range(3):
        writer.say(f"after {number}\n")
        log.look()
    assert log.stdout.read_text() == "after 0\nafter 1\nafter 2\n"
    assert aside.read_text() == "before\n"
    assert log.tail(1000) == "after 0\nafter 1\nafter 2"


def test_what_is_written_between_rename_and_look_is_lost_nowhere_W27(log: ServerLog, writer: Writer) -> None:
    writer.say("before\n")
    log.look()
    aside = log.stdout.with_name("out.log.1")
    log.stdout.rename(aside)
    writer.say("between\n")
    log.look()
    assert log.stdout.read_text() == "between\n"
    assert aside.read_text() == "before\nbetween\n"


def test_removed_file_comes_back_with_what_is_written_then_and_takes_no_room_W27(
    log: ServerLog, writer: Writer
) -> None:
    writer.say("before\n" * 1000)
    log.look()
    log.stdout.unlink()
    writer.say("after\n")
    log.look()
    assert log.stdout.read_text() == "after\n"
    assert os.fstat(writer.descriptor).st_size == 0
    log.stdout.unlink()
    log.stdout.parent.joinpath("err.log").unlink()
    writer.say("again\n")
    log.look()
    assert log.stdout.read_text() == "again\n"


def test_archive_that_is_removed_later_gives_its_room_back_W27(log: ServerLog, writer: Writer) -> None:
    writer.say("before\n" * 1000)
    log.look()
    aside = log.stdout.with_name("out.log.1")
    log.stdout.rename(aside)
    log.look()
    aside.unlink()  # compressed, say
    writer.say("after\n")
    log.look()
    assert os.fstat(writer.descriptor).st_size == 0
    assert log.stdout.read_text() == "after\n"


def test_file_that_was_cut_is_shown_from_its_new_beginning_W27(log: ServerLog, writer: Writer) -> None:
    writer.say("an earlier attempt\n" * 10)
    log.mark()
    os.truncate(log.stdout, 0)  # as logrotate's `copytruncate` does
    log.look()
    writer.say("new\n" * 100)
    assert log.tail(100).startswith("new\n")


def test_folder_that_was_removed_is_made_again_W27(log: ServerLog, writer: Writer, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    log.stdout.parent.joinpath("x").mkdir()
    inside = ServerLog(folder / "out.log", folder / "err.log")
    inside.mark()
    server = Writer(inside.stdout)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    server.say("on\n")
    inside.look()
    assert inside.stdout.read_text() == "on\n"
    os.close(server.descriptor)
    inside.close()
    assert writer.descriptor


def test_file_that_a_server_opened_by_itself_is_never_touched_W27(tmp_path: Path) -> None:
    own = tmp_path / "own.log"
    with own.open("ab") as target, subprocess.Popen(["sleep", "60"], stdout=target) as server:
        try:
            path = tmp_path / "out.log"
            first = HeldFile.at(path)
            assert HeldFile.of_process(path, server.pid, 1, first.mark) is None
            assert HeldFile.of_process(path, server.pid, 1, None) is None
            assert HeldFile.of_process(path, server.pid, 7, None) is None
            first.close()
            own_held = HeldFile.of_process(own, server.pid, 1, None)
            assert own_held is not None
            own_held.close()
        finally:
            server.kill()


CHATTY = """
import sys, time
for number in range(100000):
    print("line", number, flush=True)
    time.sleep(0.05)
"""


def test_start_whose_log_was_renamed_is_no_stall_W27(tmp_path: Path) -> None:
    backend = {"type": "command", "command": sys.executable, "args": ["-c", CHATTY]}
    probes = {"stall_s": 2, "end_stalled": True}
    with running(tmp_path, backend=backend, probes=probes) as node:
        node.start()
        pid = until("started", lambda: node.report().get("replica_pid"))
        path = tmp_path / "logs" / "server_r1_stdout.log"
        until("written", lambda: path.exists() and path.stat().st_size)
        path.rename(path.with_name("aside"))
        until("followed", lambda: path.exists() and len(path.read_text().splitlines()) > 60)
        report = node.report()
        assert (report["replica_pid"], report["restart_count"], report["stalled"]) == (pid, 0, False)


def test_log_renamed_while_no_babysitter_looked_is_followed_and_rotated_by_the_next_W27(tmp_path: Path) -> None:
    port = free_port()
    script = tmp_path / "server.py"
    light = PROJECT / "tests" / "babysitter" / "light_server.py"
    script.write_text(f"import runpy, sys, threading\n{_TALK}\nrunpy.run_path({str(light)!r}, run_name='__main__')\n")
    backend = {"type": "command", "command": sys.executable, "args": ["-u", str(script), str(port)]}
    limits = {"logs": {"max_bytes": 4096, "keep": 2, "check_s": 0.2}}
    with running(tmp_path, port=port, backend=backend, top=limits) as node:
        first = node.start()
        pid = node.ready()
        first.kill()
        first.wait()
        path = tmp_path / "logs" / "server_r1_stdout.log"
        aside = path.with_name("aside")
        path.rename(aside)
        node.start()
        assert node.ready() == pid
        until("followed and rotated", lambda: path.with_name(f"{path.name}.1").exists())
        size = aside.stat().st_size
        until("rotated twice", lambda: path.with_name(f"{path.name}.2").exists())
        assert aside.stat().st_size <= size + 4096
        assert ask(f"http://127.0.0.1:{node.port + 1}/health")["restart_count"] == 0


_TALK = """
def talk():
    import time
    while True:
        print("x" * 200)
        time.sleep(0.01)
threading.Thread(target=talk, daemon=True).start()
"""


@pytest.mark.world
@pytest.mark.parametrize("way", ["create", "copytruncate"])
def test_real_logrotate_does_what_its_configuration_says_W27(tmp_path: Path, way: str) -> None:
    backend = {"type": "command", "command": sys.executable, "args": ["-c", CHATTY]}
    with running(tmp_path, backend=backend, top={"logs": {"check_s": 0.2}}) as node:
        node.start()
        path = tmp_path / "logs" / "server_r1_stdout.log"
        until("written", lambda: path.exists() and len(path.read_text().splitlines()) > 20)
        rules = tmp_path / "rules"
        mode = "create 0600" if way == "create" else way
        rules.write_text(f"{path} {{\n rotate 2\n compress\n {mode}\n}}\n")
        rules.chmod(0o644)
        for directory in (tmp_path / "logs", tmp_path):
            directory.chmod(0o755)
        command = [debian("logrotate"), "-f", "-s", str(tmp_path / "status"), str(rules)]
        subprocess.run(command, check=True, stderr=subprocess.PIPE)
        assert path.with_name(f"{path.name}.1.gz").exists()
        count = len(path.read_text().splitlines())
        until("followed", lambda: len(path.read_text().splitlines()) > count + 20)
        numbers = [int(line.split()[1]) for line in path.read_text().splitlines()[:20]]
        assert numbers == list(range(numbers[0], numbers[0] + 20))
