"""A server's processes are known by what the kernel holds, and all of them end with it (W25, W50)."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from babysitter import family, identity
from babysitter.attempt import ServerAttempt, ServerCommand
from babysitter.attempt_files import AttemptLabels
from babysitter.footprint import memory_bytes
from babysitter.identity import Kinship
from tests.babysitter.real import PROJECT, Node, ask, light, running, shims, until
from tests.ports import free_port

HERE = PROJECT / "tests" / "babysitter"
PREFORK_PROCESSES = 3
SHARED_MIB = 64
SHARED = f"""
import mmap, os, sys, time
block = mmap.mmap(-1, {SHARED_MIB} << 20)
block[:] = b"x" * len(block)
for _ in range(2):
    if os.fork() == 0:
        bytes(block)
        os.write(1, b"up\\n")
        time.sleep(60)
        sys.exit()
time.sleep(60)
"""
MULTIPROCESSING = """
import multiprocessing, sys, time
from multiprocessing import shared_memory
def work(name):
    block = shared_memory.SharedMemory(name)
    while True:
        time.sleep(1)
if __name__ == "__main__":
    block = shared_memory.SharedMemory(create=True, size=1 << 20)
    multiprocessing.Process(target=work, args=(block.name,)).start()
    print(block.name, flush=True)
    time.sleep(600)
"""


def prefork(directory: Path, **changes: object) -> AbstractContextManager[Node]:
    """A node over a server that forks workers and has no mark."""
    port = free_port()
    backend = {"type": "command", "command": sys.executable, "args": [str(HERE / "prefork_server.py"), str(port)]}
    return running(directory, port=port, backend=backend, **changes)


def family_of(node: Node) -> list[int]:
    """The whole family, once it is complete."""
    return list(until("a whole family", lambda: len(found := node.processes()) == PREFORK_PROCESSES and found))


def gone(pids: list[int]) -> bool:
    return all(identity.start_ticks(pid) is None for pid in pids)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_server_that_overwrites_its_environment_is_ready_adopted_and_ended_whole_W25(tmp_path: Path) -> None:
    with prefork(tmp_path) as node:
        first = node.start()
        pid = node.ready()
        pids = family_of(node)
        assert identity.bearers(node.attempts()[0]) == []
        end(first)
        second = node.start()
        assert node.ready() == pid
        assert node.health()["restart_count"] == 0
        assert ask(f"http://127.0.0.1:{node.port + 1}/stop", {}) is not None
        assert second.wait(60) == 0
        assert gone(pids)


def test_server_started_without_an_environment_is_ready_and_adopted_W25(tmp_path: Path) -> None:
    port = free_port()
    words = ["-i", sys.executable, "-I", "-S", str(HERE / "light_server.py"), str(port)]
    with running(tmp_path, port=port, backend={"type": "command", "command": "env", "args": words}) as node:
        first = node.start()
        pid = node.ready()
        assert identity.bearers(node.attempts()[0]) == []
        end(first)
        node.start()
        assert node.ready() == pid
        node.babysitters[-1].terminate()
        assert node.babysitters[-1].wait(60) == 0
        assert gone([pid])


def test_stranger_on_the_port_of_an_unmarked_server_is_still_told_W25(tmp_path: Path) -> None:
    with light(tmp_path) as node:
        node.backend = {"type": "command", "command": "env -i sleep 60"}
        node.start()
        until("alive", lambda: node.report().get("replica_pid"))
        script = str(HERE / "light_server.py")
        with subprocess.Popen([sys.executable, script, str(node.port)], stdout=subprocess.DEVNULL) as stranger:
            said = until("told", lambda: "stranger" in str(node.report().get("error_message")) and node.report())
            assert f"pid {stranger.pid}" in said["error_message"]
            stranger.kill()


def kill_shim_and_server(node: Node, pid: int) -> None:
    """Both at once, so that neither sees to what the other leaves."""
    both = [*shims(node.directory), pid]
    for member in both:
        os.kill(member, signal.SIGSTOP)
    for member in both:
        os.kill(member, signal.SIGKILL)


def test_workers_end_when_shim_and_server_die_together_W50(tmp_path: Path) -> None:
    with prefork(tmp_path, restarts={"restart_delay": 0.1}) as node:
        node.start()
        pid = node.ready()
        pids = family_of(node)
        until("they are known", lambda: len(known(node)) == PREFORK_PROCESSES)
        kill_shim_and_server(node, pid)
        until("swept", lambda: gone(pids))
        assert until("a new server", lambda: node.report().get("replica_pid") not in (None, pid))
        family_of(node)  # an incomplete one could not be ended whole by a test that kills the shim


def test_workers_of_a_server_that_died_with_its_babysitter_end_by_the_next_one_W50(tmp_path: Path) -> None:
    with prefork(tmp_path, restarts={"restart_delay": 0.1}) as node:
        first = node.start()
        pid = node.ready()
        pids = family_of(node)
        until("they are known", lambda: len(known(node)) == PREFORK_PROCESSES)
        end(first)
        kill_shim_and_server(node, pid)
        until("the server is gone", lambda: gone([pid]))
        assert not gone(pids)
        node.start()
        until("swept", lambda: gone(pids))
        assert node.ready() not in pids
        family_of(node)


def known(node: Node) -> list[object]:
    """What the babysitter has written of the attempt's members."""
    path = node.attempts_path / node.attempts()[0] / "members.json"
    return list(json.loads(path.read_bytes())["members"]) if path.exists() else []


def test_shared_memory_of_a_killed_server_is_unlinked_W50(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(MULTIPROCESSING)
    backend = {"type": "command", "command": sys.executable, "args": [str(script)]}
    with running(tmp_path, backend=backend, restarts={"restart_delay": 60}) as node:
        node.start()
        log = tmp_path / "logs" / "server_r1_stdout.log"
        name = until("its name", lambda: log.exists() and log.read_text().strip())
        block = Path("/dev/shm") / name  # noqa: S108 - where the kernel has it
        pids = until("tracker and worker", lambda: len(found := node.processes()) == PREFORK_PROCESSES and found)
        assert block.exists()
        os.kill(node.report()["replica_pid"], signal.SIGKILL)
        until("everything ended", lambda: gone(pids))
        node.status("starting")
        assert not block.exists()


async def test_shim_that_died_before_it_was_awaited_leaves_no_zombie_W50(tmp_path: Path) -> None:
    attempt = ServerAttempt(tmp_path / uuid.uuid4().hex, grace_s=1)
    out = tmp_path / "out"
    ready = attempt.begin(ServerCommand(("sleep", "60"), dict(os.environ), tmp_path, out, out, 1), AttemptLabels())
    server = await attempt.started(ready)
    assert server is not None
    (shim,) = shims(tmp_path)
    for pid in (shim, server.pid):
        os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(until, "dead", lambda: gone([shim, server.pid]))
    await attempt.ended()
    with pytest.raises(ChildProcessError):
        os.waitpid(shim, os.WNOHANG)  # noqa: ASYNC222 - does not wait


async def test_stopped_shim_and_a_server_named_like_a_resource_tracker_end_when_told_W50(tmp_path: Path) -> None:
    attempt = ServerAttempt(tmp_path / uuid.uuid4().hex, grace_s=600)
    out, words = tmp_path / "out", "trap '' TERM; : resource_tracker; while :; do sleep 0.1; done"
    ready = attempt.begin(
        ServerCommand(("sh", "-c", words), dict(os.environ), tmp_path, out, out, 600), AttemptLabels()
    )
    assert await attempt.started(ready) is not None
    (shim,) = shims(tmp_path)
    os.kill(shim, signal.SIGSTOP)
    attempt.end(force=False)
    attempt.end(force=True)
    assert (await asyncio.wait_for(attempt.ended(), 60)).signal == signal.SIGKILL  # as only the shim can tell


def test_process_of_another_user_is_not_signalled_and_no_defect_W25(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_handle: int, _number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    ours = identity.identify(os.getpid())
    assert ours is not None
    assert not identity.send(ours, signal.SIGTERM)


def test_memory_that_workers_share_is_counted_once_W51() -> None:
    with subprocess.Popen([sys.executable, "-c", SHARED], stdout=subprocess.PIPE, start_new_session=True) as parent:
        try:
            assert parent.stdout is not None
            assert [parent.stdout.readline(), parent.stdout.readline()] == [b"up\n", b"up\n"]
            root = identity.identify(parent.pid)
            assert root is not None
            found = family.members(shim=None, server=root, remembered=(), uuid="none")
            assert len(found) == PREFORK_PROCESSES
            assert SHARED_MIB << 20 <= memory_bytes(found) < 2 * SHARED_MIB << 20
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def test_descendants_are_found_whatever_the_order_and_a_loop_ends_W25() -> None:
    alive = {2: Kinship(1, 1, 5), 5: Kinship(4, 4, 9), 4: Kinship(3, 3, 8), 3: Kinship(2, 1, 7), 7: Kinship(7, 7, 1)}
    assert family.descendants({3}, alive) == {3, 4, 5}
    assert family.descendants({7}, alive) == {7}


def test_command_that_goes_into_the_background_is_told_so_W25(tmp_path: Path) -> None:
    words = ["-c", "sleep 60 & exit 0"]
    with running(tmp_path, backend={"type": "command", "command": "sh", "args": words}) as node:
        node.restarts = {"restart_delay": 60}
        node.start()
        until("told", lambda: "keep the command in the foreground" in str(node.report().get("error_message")))
