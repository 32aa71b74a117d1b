"""Servers outlive their babysitters: adopted with the same pid, never confused with a stranger, never started twice."""

import asyncio
import json
import os
import random
import signal
import subprocess
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from babysitter import events as ev
from babysitter import identity, state_file
from babysitter.__main__ import make_home
from babysitter.assemble import make_engine, make_probe, make_spec
from babysitter.attempt import ServerAttempt, ServerCommand
from babysitter.attempt_files import AttemptLabels
from babysitter.lifecycle import ReplicaState
from babysitter.memory import new_memory, read_memory
from babysitter.settings import parse
from babysitter.supervisor import Supervisor
from common import lock_file
from common.clock import SystemClock
from common.http.client import make_session
from common.tasks import TaskScope
from tests.babysitter.real import Node, ask, is_forking, light, running, shims, until

LONG = {"restart_delay": 60}
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def attempt_dir(node: Node) -> Path:
    return node.directory / "data" / "babysitter" / node.name / "attempts" / str(node.state()["memory"]["attempt"])


def end_server_and_shim(node: Node, *, leave_exit: bool) -> dict[str, Any]:
    """Kill shim and server of a node without babysitter; returns what server.json told."""
    told = dict(json.loads((attempt_dir(node) / "server.json").read_bytes()))
    if not leave_exit:
        for pid in shims(node.directory):
            os.kill(pid, signal.SIGKILL)
        until("the shim is gone", lambda: not shims(node.directory))
    os.kill(told["pid"], signal.SIGKILL)
    until("the server is gone", lambda: not node.processes() and not shims(node.directory))
    return told


def test_killed_babysitters_server_is_adopted_with_its_pid_B1(tmp_path: Path) -> None:
    with light(tmp_path, restarts=LONG) as node:
        kill_me = node.start()
        pid = node.ready()
        ticks = identity.start_ticks(pid)
        kill(kill_me)
        assert node.server("/v1/models")["data"]
        node.start()
        assert node.ready() == pid
        assert identity.start_ticks(pid) == ticks
        assert node.health()["restart_count"] == 0


def test_request_survives_the_babysitters_death_and_the_exit_code_is_known_after_it_B1_B5(tmp_path: Path) -> None:
    held = {"type": "mock", "models": ["m"], "args": ["--hold"]}
    with running(tmp_path, restarts=LONG, backend=held, probes={"generate_path": ""}) as node:
        babysitter = node.start()
        node.ready()
        url = f"http://127.0.0.1:{node.port}"
        with subprocess.Popen(["curl", "-s", f"{url}/v1/completions", "-d", '{"prompt": "x"}'], stdout=-1) as client:
            ask(f"{url}/mock/state?wait_s=5&held=1")
            kill(babysitter)
            node.start()
            node.ready()
            ask(f"{url}/mock/release", {})
            said, _ = client.communicate(timeout=60)
        assert json.loads(said)["choices"]
        ask(f"{url}/mock/knobs", {"hold": False, "die_after_chunks": 0, "exit_code": 42})
        node.server("/v1/completions", {"prompt": "x"})
        assert "exited with code 42" in node.status("starting")["error_message"]


def start_ready(node: Node) -> subprocess.Popen[bytes]:
    process = node.start()
    node.ready()
    return process


def test_server_that_died_meanwhile_counts_as_one_exit_with_its_code_B5(tmp_path: Path) -> None:
    with light(tmp_path, restarts=LONG) as node:
        kill(start_ready(node))
        end_server_and_shim(node, leave_exit=True)
        node.start()
        report = node.status("starting")
        assert "SIGKILL" in report["error_message"]
        assert datetime.fromisoformat(report["next_restart_at"]) > datetime.now(UTC) + timedelta(seconds=30)


def test_server_and_shim_that_died_meanwhile_are_an_unknown_exit_B5(tmp_path: Path) -> None:
    with light(tmp_path, restarts=LONG) as node:
        kill(start_ready(node))
        end_server_and_shim(node, leave_exit=False)
        node.start()
        report = node.status("starting")
        assert "exit code is unknown" in report["error_message"]


def test_lost_shim_costs_the_exit_code_and_nothing_else(tmp_path: Path) -> None:
    with light(tmp_path, restarts={"restart_delay": 0.1}) as node:
        babysitter = start_ready(node)
        pid = node.ready()
        for shim in shims(tmp_path):
            os.kill(shim, signal.SIGKILL)
        until("the shim is gone", lambda: not shims(tmp_path))
        assert node.ready() == pid
        kill(babysitter)
        node.start()
        assert node.ready() == pid
        os.kill(pid, signal.SIGKILL)
        until("a new server", lambda: node.report().get("replica_pid") not in (None, pid))
        node.ready()
        node.babysitters[-1].terminate()
        assert node.babysitters[-1].wait(60) == 0
        assert node.processes() == []


def test_server_without_shim_is_still_stopped_by_sigterm(tmp_path: Path) -> None:
    with light(tmp_path) as node:
        babysitter = start_ready(node)
        for shim in shims(tmp_path):
            os.kill(shim, signal.SIGKILL)
        until("the shim is gone", lambda: not shims(tmp_path))
        babysitter.terminate()
        assert babysitter.wait(60) == 0
        assert node.processes() == []


def test_death_between_spawn_and_state_finds_the_server_by_its_mark_B3(tmp_path: Path) -> None:
    with light(tmp_path, restarts=LONG) as node:
        kill(start_ready(node))
        pid = int(json.loads((attempt_dir(node) / "server.json").read_bytes())["pid"])
        (attempt_dir(node) / "server.json").unlink()
        node.start()
        assert node.ready() == pid


def test_shim_that_begins_too_late_does_nothing_B3(tmp_path: Path) -> None:
    with light(tmp_path, restarts=LONG) as node:
        kill(start_ready(node))
        end_server_and_shim(node, leave_exit=True)
        directory = attempt_dir(node)
        for path in directory.iterdir():
            path.unlink()
        node.start()
        node.ready()
        assert (directory / "claim").exists()
        late = subprocess.run(["python3", "babysitter/shim.py", str(directory), "1"], check=False, timeout=10)
        assert late.returncode == 1


@pytest.mark.skipif(not os.access(LAST_PID, os.W_OK), reason="needs root to choose the next pid")
def test_stranger_with_the_same_pid_is_neither_adopted_nor_killed_B6(tmp_path: Path) -> None:
    with light(tmp_path, restarts={"restart_delay": 0.1}) as node:
        kill(start_ready(node))
        told = end_server_and_shim(node, leave_exit=True)
        (attempt_dir(node) / "exit.json").unlink()
        stranger = None
        for _ in range(200):
            LAST_PID.write_text(str(told["pid"] - 1))
            stranger = subprocess.Popen(["sleep", "60"])
            if stranger.pid == told["pid"]:
                break
            kill(stranger)
        assert stranger is not None
        assert stranger.pid == told["pid"]
        try:
            ticks = identity.start_ticks(stranger.pid)
            server = attempt_dir(node) / "server.json"
            server.write_text(json.dumps({**told, "ticks": ticks}))
            node.start()
            assert node.ready() != stranger.pid
            node.babysitters[-1].terminate()
            node.babysitters[-1].wait(60)
            assert stranger.poll() is None
        finally:
            kill(stranger)


def test_after_a_reboot_the_server_is_started_at_once_B7(tmp_path: Path) -> None:
    with light(tmp_path, restarts=LONG) as node:
        kill(start_ready(node))
        told = end_server_and_shim(node, leave_exit=False)
        boot = {**told, "boot_id": "00000000-0000-4000-8000-000000000000"}
        (attempt_dir(node) / "server.json").write_text(json.dumps(boot))
        node.start()
        node.ready(10)
        assert node.health()["restart_count"] == 0


@pytest.mark.parametrize(("damage", "backup"), [(b"", False), (b"\x00\xff", True)])
def test_corrupt_state_costs_no_server_B8(tmp_path: Path, damage: bytes, backup: bool) -> None:  # noqa: FBT001 - a row of two
    with light(tmp_path, restarts=LONG) as node:
        kill(start_ready(node))
        pid = node.processes()[0]
        node.state_path().write_bytes(damage)
        if not backup:
            node.state_path().with_name("r1.json.bak").write_bytes(damage)
        node.start()
        assert node.ready() == pid
        assert list(node.state_path().parent.glob("r1.json.corrupt-*"))
        assert until("state", lambda: node.state()["status"] == "ready")


def test_detached_server_keeps_running_and_is_adopted_B10(tmp_path: Path) -> None:
    with light(tmp_path, top={"on_exit": "detach"}) as node:
        first = start_ready(node)
        pid = node.ready()
        first.terminate()
        assert first.wait(60) == 0
        assert node.server("/health")["status"] == "ok"
        node.start()
        assert node.ready() == pid
        second = node.start("--on-exit", "stop")
        assert second.wait(60) == 78
        kill(node.babysitters[1])
        third = node.start("--on-exit", "stop")
        assert node.ready() == pid
        third.terminate()
        assert third.wait(60) == 0
        assert node.processes() == []


async def supervise_a_stop(node: Node) -> ReplicaState:
    """A babysitter within the test that hears of a stop before it has looked at what is there; its last state."""
    settings, clock = parse(["--config", str(node.config)], {}), SystemClock()
    spec = make_spec(settings, environ=dict(os.environ), clock=clock, mark="m")
    home = make_home(settings)
    home.acquire()
    try:
        memory = new_memory(read_memory(home.state.load(stamp="x")), instance_id="i", epoch_s=1, now="t")
        async with make_session(timeout_s=5.0) as session, TaskScope("test") as scope:
            probe = make_probe(settings, spec, session)
            supervisor = Supervisor(
                spec,
                home,
                memory,
                probe,
                make_engine(settings, spec, session, clock),
                clock=clock,
                rng=random.Random(1),
            )
            await supervisor.adopt()
            supervisor.tell(ev.StopRequested("x"))
            await supervisor.start(scope)
            ends = [asyncio.ensure_future(end) for end in (supervisor.finished.wait(), scope.failed())]
            await asyncio.wait(ends, timeout=60, return_when=asyncio.FIRST_COMPLETED)
            assert [end.done() for end in ends] == [True, False]
            ends[1].cancel()
            await supervisor.leave()
            return supervisor.state
    finally:
        home.release()


async def test_stop_before_the_adoption_ends_the_server_E2(tmp_path: Path) -> None:
    with light(tmp_path, restarts=LONG) as node:
        kill(start_ready(node))
        assert node.processes()
        assert await supervise_a_stop(node) is ReplicaState.STOPPED
        assert node.processes() == []
        assert node.state()["status"] == "stopped"


async def test_stop_before_the_first_start_leaves_nothing_running_E2(tmp_path: Path) -> None:
    with light(tmp_path, restarts=LONG) as node:
        assert await supervise_a_stop(node) is ReplicaState.STOPPED
        assert node.processes() == []


async def test_server_that_starts_later_than_is_waited_for_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("babysitter.attempt.START_TIMEOUT_S", 0.05)
    pipe = tmp_path / "stdout"
    os.mkfifo(pipe)  # the server is not started before somebody reads it
    attempt = ServerAttempt(tmp_path / uuid.uuid4().hex, grace_s=1)
    ready = attempt.begin(
        ServerCommand(("sleep", "60"), dict(os.environ), tmp_path, pipe, tmp_path / "stderr", 1), AttemptLabels()
    )
    try:
        await asyncio.to_thread(until, "the shim's claim", lambda: lock_file.is_held(attempt.directory / "claim"))
        assert await attempt.started(ready) is None
        late = asyncio.create_task(attempt.started_late())
        assert not (await asyncio.wait([late], timeout=0.2))[0]
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        server = await asyncio.wait_for(late, 60)
        os.close(reader)
        assert server is not None
        assert identity.is_alive(server)
    finally:
        attempt.end(force=True)
        await asyncio.wait_for(attempt.ended(), 60)
        await attempt.close()


def test_hangup_ends_no_server_B11(tmp_path: Path) -> None:
    with light(tmp_path) as node:
        babysitter = start_ready(node)
        pid = node.ready()
        babysitter.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert os.getsid(pid) == pid
        assert node.server("/health")["status"] == "ok"


def test_suspended_babysitter_restarts_nothing_and_notices_everything_B13(tmp_path: Path) -> None:
    with light(tmp_path) as node:
        babysitter = start_ready(node)
        pid = node.ready()
        babysitter.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        babysitter.send_signal(signal.SIGCONT)
        assert node.ready() == pid
        assert node.health()["restart_count"] == 0
        babysitter.send_signal(signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        babysitter.send_signal(signal.SIGCONT)
        until("restarted", lambda: node.report().get("restart_count") == 1)
        node.ready()


def test_four_babysitters_at_once_start_one_server_B2(tmp_path: Path) -> None:
    with light(tmp_path) as node:
        crowd = [node.start() for _ in range(4)]
        node.ready(30)
        until("all but one gave up", lambda: sum(process.poll() is None for process in crowd) == 1, 30)
        assert sorted(process.returncode or 0 for process in crowd) == [0, 78, 78, 78]
        holder = next(process.pid for process in crowd if process.returncode is None)
        assert f"another babysitter (pid {holder}) looks after" in node.log()
        assert len(node.processes()) == 1


def test_no_zombie_is_left_of_servers_that_died_A13(tmp_path: Path) -> None:
    crash = {"type": "command", "command": "sh", "args": ["-c", "exit 1"]}
    restarts = {"restart_delay": 0.01, "restart_delay_max_s": 0.01, "max_restarts": 20}
    with running(tmp_path, backend=crash, restarts=restarts) as node:
        babysitter = node.start()
        assert node.status("failed")["restart_count"] == 20

        def zombies() -> list[str]:
            said = subprocess.run(["ps", "-e", "-o", "ppid=,stat=,args="], capture_output=True, text=True, check=True)
            rows = [line.split(None, 2) for line in said.stdout.splitlines()]
            return [" ".join(row) for row in rows if row[0] == str(babysitter.pid) and row[1].startswith("Z")]

        until("reaped", lambda: not zombies(), 1)
        assert shims(tmp_path) == []


def test_server_has_three_descriptors_and_no_token_B18(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t" * 40)
    token.chmod(0o600)
    with running(tmp_path, top={"registry_url": "http://127.0.0.1:1", "token_file": str(token)}) as node:
        node.backend = {"type": "command", "command": "sleep 60"}
        node.start(env={"SVC_BABYSITTER_LOG_LEVEL": "DEBUG"})
        pid = int(until("pid", lambda: node.report().get("replica_pid")))
        assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]  # noqa: PTH208 - names are wanted
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"SVC_BABYSITTER" not in environ
        assert b"tttt" not in environ


def lives(node: Node, rng: random.Random, count: int, longest_s: float) -> None:
    """Start and kill -9 babysitters at random times; after each, at most one server and one truthful file."""
    for _ in range(count):
        process = node.start()
        time.sleep(rng.uniform(0.0, longest_s))
        kill(process)
        servers = [pid for pid in node.processes() if not is_forking(pid)]
        assert len(servers) <= 1, servers
        if node.state_path().exists():
            state = node.state()
            assert state["crc32"]
            assert state["memory"]["attempt"] is None or state["memory"]["attempt"] in [*node.attempts(), None]


@pytest.mark.parametrize("count", [5, pytest.param(50, marks=pytest.mark.soak)])
@pytest.mark.timeout(600)
def test_babysitters_killed_at_random_times_leave_one_server(tmp_path: Path, count: int) -> None:
    rng = random.Random(count)
    backend = {"type": "mock", "models": ["m"], "args": ["--slow-start-s", "0.3"]}
    with running(tmp_path, backend=backend, restarts={"restart_delay": 0.1}) as node:
        lives(node, rng, count, 1.8)
        node.start()
        pid = node.ready()
        assert node.processes() == [pid]
        assert until("state", lambda: node.state()["replica_pid"] == pid)


LAST_VERSION = Path(__file__).parent / "files" / "before_wire_structs.json"
"""State file and server.json as the last version before this one wrote them (commit 2cd04d9), but for what is filled in."""


def test_server_and_memory_of_the_last_version_are_adopted(tmp_path: Path) -> None:
    """Its process is taken for that of a babysitter of that version: only ids, port and files are this machine's."""
    with light(tmp_path, restarts=LONG) as node:
        first = node.start()
        pid = node.ready()
        kill(first)
        written = json.loads(LAST_VERSION.read_text())
        old, ours = written["state"], json.loads(node.state_path().read_bytes())
        attempt = ours["memory"]["attempt"]
        old |= {"port": node.port, "replica_pid": pid}
        old["memory"] |= {"port": node.port, "attempt": attempt}
        node.state_path().write_bytes(state_file.encode(old, 12))
        server_file = node.attempts_path / attempt / "server.json"
        server = json.loads(server_file.read_bytes())
        labels = {**written["server.json"]["labels"], "files": server["labels"]["files"]}
        fresh = {name: server[name] for name in ("uuid", "boot_id", "pid", "ticks")}
        server_file.write_text(json.dumps({**written["server.json"], **fresh, "labels": labels}))
        node.start()
        assert node.ready() == pid
        report = node.report()
        assert report["instance_id"] == old["instance_id"]
        assert report["incarnation"] > old["incarnation"]
        assert (report["restart_count"], report["created_at"]) == (1, old["created_at"])
        assert (report["compile_wsjob"], report["execute_wsjob"]) == (["wsjob-0", "wsjob-1"], ["wsjob-2"])
        timeline = ask(f"http://127.0.0.1:{node.port + 1}/timeline")
        assert timeline["transitions"][:7] == old["memory"]["timeline"]
        assert (timeline["stages"], timeline["jobs"]["cancelled"]) == (
            old["stages"],
            old["memory"]["jobs"]["cancelled"],
        )
        assert "babysitter.stop_grace_s" not in report["need_restart"]
