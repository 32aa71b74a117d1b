"""A real babysitter over a real server: start, crash, stop, and every refusal to start."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.babysitter.conftest import Registry
from tests.babysitter.real import PROJECT, ask, light, running, shims, until
from tests.ports import free_port


def run_to_its_end(*flags: str, cwd: Path = PROJECT) -> tuple[int, str]:
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-m", "babysitter", *flags],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_server_is_started_and_killed_and_comes_back_A1(tmp_path: Path) -> None:
    with running(tmp_path, backend={"type": "mock", "models": ["m"], "args": ["--slow-start-s", "0.5"]}) as node:
        node.start()
        starting = until("health", node.health)
        assert starting["status"] in ("starting", "waiting_for_ready")
        pid = node.ready()
        assert node.server("/v1/models")["data"][0]["id"] == "m"
        health = node.health()
        assert (health["status"], health["infinilm_server_running"]) == ("healthy", True)
        assert health["infinilm_server_port"] == node.port
        state = until("state", lambda: (s := node.state())["status"] == "ready" and s)
        assert (state["replica_pid"], state["port"], state["models"]) == (pid, node.port, ["m"])
        assert state["base_url"] == f"http://localhost:{node.port}"
        assert state["endpoint"] == f"http://{socket.getfqdn()}:{node.port}"
        os.kill(pid, signal.SIGKILL)
        until("a second server", lambda: node.report().get("replica_pid") not in (None, pid))
        node.ready()
        assert node.health()["restart_count"] == 1
        causes = [entry["cause"] for entry in node.state()["memory"]["timeline"]]
        assert "killed by signal 9 (SIGKILL)" in causes
        lines = (tmp_path / "logs" / "server_r1_stdout.log").read_text().splitlines()
        assert lines.count(f"start service at localhost:{node.port}") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_the_server_and_leaves_nothing_B10(tmp_path: Path, number: signal.Signals) -> None:
    with light(tmp_path) as node:
        babysitter = node.start()
        node.ready()
        babysitter.send_signal(number)
        assert babysitter.wait(60) == 0
        assert node.processes() == []
        assert shims(tmp_path) == []
        assert node.state()["status"] == "stopped"


def test_start_after_a_stop_is_no_restart(tmp_path: Path) -> None:
    with light(tmp_path, restarts={"restart_delay": 60}) as node:
        node.start()
        node.ready()
        node.babysitters[-1].terminate()
        node.babysitters[-1].wait(60)
        node.start()
        node.ready(30)


def test_command_that_does_not_exist_is_one_line_and_78(tmp_path: Path) -> None:
    code, said = run_to_its_end("-n", "x", "-p", "20999", "--command", "no-such-program", cwd=tmp_path)
    assert code == 78
    assert said == (
        "svc-babysitter: error: x: command 'no-such-program' does not exist on PATH or cannot be run; install it, "
        "or give its whole path (a virtual environment's is FOLDER/bin/PROGRAM)\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_work_dir_that_does_not_exist_is_one_line_and_78(tmp_path: Path) -> None:
    code, said = run_to_its_end("-n", "x", "-p", "20999", "--command", "true", "--work-dir", "/no/dir", cwd=tmp_path)
    assert code == 78
    assert said == "svc-babysitter: error: x: work_dir /no/dir is not a directory\n"
    assert list(tmp_path.iterdir()) == []


def test_typo_in_the_file_is_one_line_and_78(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_text('name = "x"\nport = 20999\n[backend]\ntype = "mock"\nmodel = ["m"]\nmodels = ["m"]\n')
    code, said = run_to_its_end("--config-file", str(file), cwd=tmp_path)
    assert code == 78
    assert said == f"svc-babysitter: error: {file}: unknown key 'backend.model' (did you mean 'models'?)\n"


@pytest.mark.parametrize("offset", [0, 1])
def test_taken_port_names_its_holder_and_is_78_A14(tmp_path: Path, offset: int) -> None:
    with running(tmp_path) as node, socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", node.port + offset))
        stranger.listen()
        babysitter = node.start()
        assert babysitter.wait(60) == 78
        last = node.log().splitlines()[-1]
        assert re.search(rf"{node.port + offset} is taken by pid {os.getpid()} \(", last), last
        assert shims(tmp_path) == []


@pytest.mark.soak  # four at once are told the same
def test_second_babysitter_of_a_replica_ends_at_once_B2(tmp_path: Path) -> None:
    with light(tmp_path) as node:
        first = node.start()
        pid = node.ready()
        second = node.start()
        assert second.wait(60) == 78
        assert f"another babysitter (pid {first.pid}) looks after" in node.log()
        assert "stop it, or give this one another name" in node.log()
        assert node.ready() == pid


def test_crash_loop_fails_with_the_logs_tail_and_stays_up_A6(tmp_path: Path) -> None:
    crash = {"type": "mock", "models": ["m"], "args": ["--exit-after-s", "0", "--exit-code", "3"]}
    with running(tmp_path, backend=crash, restarts={"restart_delay": 0.01}) as node:
        node.start()
        report = node.status("failed")
        assert "crash loop: 5 exits" in report["error_message"]
        assert report["error_message"].endswith("the mock exits with 3, as told")
        assert report["restart_count"] == 4
        assert node.health()["display_status"] == "Failed"


def test_exit_code_78_is_not_restarted_A7(tmp_path: Path) -> None:
    crash = {"type": "mock", "models": ["m"], "args": ["--exit-after-s", "0", "--exit-code", "78"]}
    with running(tmp_path, backend=crash) as node:
        node.start()
        report = node.status("failed")
        assert report["restart_count"] == 0
        assert "do not restart" in report["error_message"]


def test_server_that_ignores_sigterm_is_killed_after_its_grace_A11(tmp_path: Path) -> None:
    backend = {"type": "mock", "models": ["m"], "args": ["--ignore-sigterm"]}
    with running(tmp_path, backend=backend, restarts={"stop_grace_s": 0.5, "drain_s": 0}) as node:
        babysitter = node.start()
        node.ready()
        babysitter.terminate()
        assert babysitter.wait(60) == 0
        assert node.processes() == []
        assert any("SIGKILL" in entry["cause"] for entry in node.state()["memory"]["timeline"])


def test_grandchild_in_its_own_session_is_ended_too_A12(tmp_path: Path) -> None:
    backend = {"type": "mock", "models": ["m"], "args": ["--grandchild"]}
    with running(tmp_path, backend=backend) as node:
        babysitter = node.start()
        node.ready()
        assert len(node.processes()) == 2
        babysitter.terminate()
        assert babysitter.wait(60) == 0
        assert node.processes() == []


def test_request_in_flight_is_finished_before_a_stop_D28(tmp_path: Path) -> None:
    backend = {"type": "mock", "models": ["m"], "args": ["--hold"]}
    with running(tmp_path, backend=backend, restarts={"drain_s": 20}, probes={"generate_path": ""}) as node:
        babysitter = node.start()
        node.ready()
        url = f"http://127.0.0.1:{node.port}"
        with subprocess.Popen(["curl", "-s", f"{url}/v1/completions", "-d", '{"prompt": "x"}'], stdout=-1) as client:
            ask(f"{url}/mock/state?wait_s=5&held=1")
            babysitter.terminate()
            node.status("stopping")
            time.sleep(1.5)
            assert babysitter.poll() is None
            ask(f"{url}/mock/release", {})
            said, _ = client.communicate(timeout=10)
        assert json.loads(said)["choices"]
        assert babysitter.wait(60) == 0


def test_a_stop_waits_for_no_connection_that_is_only_kept_W55(tmp_path: Path) -> None:
    slow = ["--token-delay-s", "0.02"]
    with running(tmp_path, backend={"type": "mock", "models": ["m"], "args": slow}, restarts={"drain_s": 60}) as node:
        babysitter = node.start()
        node.ready()
        with socket.create_connection(("127.0.0.1", node.port)) as kept:
            kept.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: m\r\nContent-Length: 15\r\n\r\n" + b'{"prompt": "x"}')
            assert kept.recv(1000).startswith(b"HTTP/1.1 200")
            babysitter.terminate()
            assert babysitter.wait(40) == 0


def test_server_over_its_memory_is_restarted_A16(tmp_path: Path) -> None:
    backend = {"type": "mock", "models": ["m"], "args": ["--leak-mb-per-s", "100"]}
    limits = {"memory_soft_mb": 100, "memory_hard_mb": 200}
    with running(tmp_path, backend=backend, top={"limits": limits}, restarts={"drain_s": 0}) as node:
        node.start()
        node.ready()
        until("restarted", lambda: node.report().get("restart_count"), 30)
        causes = [entry["cause"] for entry in node.state()["memory"]["timeline"]]
        assert any("more than its 200 MiB" in cause for cause in causes)


def test_server_over_its_soft_limit_is_degraded_and_goes_on_A16(tmp_path: Path) -> None:
    backend = {"type": "mock", "models": ["m"]}
    with running(tmp_path, backend=backend, top={"limits": {"memory_soft_mb": 1}}) as node:
        node.start()
        pid = node.ready()
        until("degraded", lambda: node.report().get("degraded"))
        assert (node.report()["replica_pid"], node.report()["restart_count"]) == (pid, 0)


def test_log_is_rotated_and_its_size_bounded_A18(tmp_path: Path) -> None:
    backend = {"type": "mock", "models": ["m"], "args": ["--log-lines-per-s", "2000"]}
    logs = {"max_bytes": 20_000, "keep": 2, "check_s": 0.1}
    with running(tmp_path, backend=backend, top={"logs": logs}) as node:
        node.start()
        node.ready()
        until("rotated twice", (tmp_path / "logs" / "server_r1_stdout.log.2").exists)
        kept = {f"server_r1_stdout.log{end}" for end in ("", ".1", ".2")}

        def names() -> set[str]:
            return {path.name for path in (tmp_path / "logs").glob("*stdout*")}

        for _ in range(20):
            assert names() <= kept
            time.sleep(0.05)
        until("all three, as between two rotations", lambda: names() == kept)
        assert node.server("/health")["status"] == "ok"


def test_server_that_answers_but_cannot_generate_is_not_ready(tmp_path: Path) -> None:
    backend = {"type": "mock", "models": ["m"], "args": ["--fail-first", "3"]}
    with running(tmp_path, backend=backend, probes={"generate_path": "/v1/completions"}) as node:
        node.start()
        node.ready()
        assert node.server("/mock/state")["requests"] == 4


def make_xtask(directory: Path, *, first: str = "") -> dict[str, str]:
    """An `xtask` that serves at a port of its own, after the shell's `first`; the environment to find it in."""
    xtask = directory / "bin" / "xtask"
    xtask.parent.mkdir()
    script = PROJECT / "tests" / "babysitter" / "light_server.py"
    xtask.write_text(f"#!/bin/sh\n{first}\nexec {sys.executable} -I -S {script} 0\n")
    xtask.chmod(0o755)
    return {"PATH": f"{xtask.parent}:{os.environ['PATH']}"}


RUST = {"type": "infinilm-rust", "config_file": "c.toml"}


def test_port_of_the_ready_line_is_found(tmp_path: Path) -> None:
    env = make_xtask(tmp_path)
    with running(tmp_path, backend=RUST) as node:
        node.start(env=env)
        node.ready()
        port = node.report()["port"]
        assert port != node.port
        assert ask(f"http://127.0.0.1:{port}/health") == {"status": "ok"}


@pytest.mark.parametrize("is_lost", [True, False])
def test_port_of_the_ready_line_outlives_the_babysitter_B1(tmp_path: Path, is_lost: bool) -> None:  # noqa: FBT001 - a row
    env = make_xtask(tmp_path)
    with running(tmp_path, backend=RUST) as node:
        first = node.start(env=env)
        pid = node.ready()
        port = node.report()["port"]
        until("written", lambda: node.state()["status"] == "ready")
        first.kill()
        first.wait()
        if is_lost:  # as after a rotation
            os.truncate(next((tmp_path / "logs").glob("*stdout.log")), 0)
        node.start(env=env)
        assert node.ready() == pid
        assert node.report()["port"] == port


def test_ready_line_that_came_while_no_babysitter_ran_is_found_B1(tmp_path: Path) -> None:
    go = tmp_path / "go"
    env = make_xtask(tmp_path, first=f"while [ ! -e {go} ]; do sleep 0.05; done")
    with running(tmp_path, backend=RUST) as node:
        first = node.start(env=env)
        node.status("waiting_for_ready")
        first.kill()
        first.wait()
        go.touch()
        log = next((tmp_path / "logs").glob("*stdout.log"))
        until("the ready line", lambda: "start service" in log.read_text())
        node.start(env=env)
        node.ready()
        assert node.report()["port"] != node.port


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_full_disk_stops_no_supervision_B9(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=60", "tmpfs", str(data)], check=True)
    try:
        with light(tmp_path, top={"logs": {"check_s": 0.2}}) as node:
            node.start()
            pid = node.ready()
            before = until("state", lambda: (s := node.state())["status"] == "ready" and s)
            fill = data / "fill"
            fill.mkdir()
            with contextlib.suppress(OSError):
                for number in range(1000):
                    (fill / str(number)).touch()
            os.kill(pid, signal.SIGSTOP)
            node.status("unhealthy")
            os.kill(pid, signal.SIGCONT)
            assert node.ready() == pid
            assert "No space left" in str(node.health()["state_persist_failed"])
            assert node.state() == before
            shutil.rmtree(fill)
            until("written again", lambda: node.state()["seq"] > before["seq"])
            assert node.health()["state_persist_failed"] is None
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_server_that_dies_while_the_disk_is_full_is_restarted_once_there_is_room_B9(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=60", "tmpfs", str(data)], check=True)
    restarts = {"restart_delay": 0.1, "restart_delay_max_s": 0.2, "max_restarts": 1}
    try:
        with light(tmp_path, restarts=restarts) as node:
            node.start()
            pid = node.ready()
            fill = data / "fill"
            fill.mkdir()
            with contextlib.suppress(OSError):
                for number in range(1000):
                    (fill / str(number)).touch()
            os.kill(pid, signal.SIGKILL)
            until("tried again and again", lambda: node.log().count("cannot start the server") >= 4)
            report = node.report()
            assert report["status"] == "starting"
            assert "No space left" in report["error_message"]
            shutil.rmtree(fill)
            assert node.ready() != pid
            assert node.health()["restart_count"] == 1
            assert len(node.processes()) == 1
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


def test_stranger_on_the_port_is_never_taken_for_our_server_A14_A15(tmp_path: Path) -> None:
    with running(tmp_path, backend={"type": "command", "command": "sleep 600"}) as node:
        node.start()
        node.status("waiting_for_ready")
        script = PROJECT / "tests" / "babysitter" / "light_server.py"
        with subprocess.Popen([sys.executable, "-I", "-S", str(script), str(node.port)], stdout=-3) as stranger:
            try:
                told = until("told", lambda: (e := node.report().get("error_message")) and "stranger" in e and e)
                assert f"pid {stranger.pid} (" in told
                assert node.report()["status"] == "waiting_for_ready"
            finally:
                stranger.kill()


def test_start_that_takes_longer_than_asked_is_ended_and_fails_A10(tmp_path: Path) -> None:
    backend = {"type": "command", "command": "sleep 600"}
    with running(tmp_path, backend=backend, probes={"readiness_timeout_s": 0.5, "end_late": True}) as node:
        node.start()
        assert node.status("failed")["error_message"].startswith("startup_timeout")
        assert node.processes() == []


def test_hung_server_is_out_of_rotation_and_restarted_after_its_limit_A4(tmp_path: Path) -> None:
    with light(tmp_path, probes={"timeout_s": 0.2, "liveness_s": 1}, restarts={"stop_grace_s": 0.2}) as node:
        node.start()
        pid = node.ready()
        os.kill(pid, signal.SIGSTOP)
        node.status("unhealthy")
        until("restarted", lambda: node.report().get("replica_pid") not in (None, pid))
        node.ready()
        assert node.report()["restart_count"] == 1


def test_server_that_chose_the_new_loopback_for_localhost_is_ready_and_found_there_W17(
    tmp_path: Path, registry: Registry
) -> None:
    port = free_port()
    script = str(PROJECT / "tests" / "babysitter" / "light_server.py")
    backend = {"type": "command", "command": sys.executable, "args": ["-I", "-S", script, str(port), "::1"]}
    with running(tmp_path, port=port, backend=backend, top={"registry_url": registry.url}) as node:
        node.start()
        node.ready()
        record = until("the server's record", lambda: server_record(registry, "r1-server"))
        assert (record["host"], record["url"]) == ("localhost", f"http://localhost:{port}")  # a name for both


def server_record(registry: Registry, name: str) -> dict[str, Any] | None:
    """The record of `name`, once it is there."""
    found = ask(f"{registry.url}/services/{name}")
    return found if found and "url" in found else None


KEYED = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Answer(BaseHTTPRequestHandler):
    def answer(self):
        allowed = self.headers.get("Authorization") == "Bearer " + open(sys.argv[2]).read().strip()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        models = {"data": [{"id": "m", "object": "model"}]}
        said = models if self.path.endswith("/models") else {"choices": [{"message": {"content": "x"}, "text": "x"}]}
        raw = json.dumps(said if allowed else {"error": "Unauthorized"}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
    do_GET = do_POST = answer

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def test_server_that_wants_a_key_is_asked_with_it_and_only_its_label_is_told_W3(
    tmp_path: Path, registry: Registry
) -> None:
    key, port = tmp_path / "key", free_port()
    key.write_text("sk-secret\n")
    key.chmod(0o600)
    backend = {"type": "command", "command": sys.executable, "args": ["-I", "-S", "-c", KEYED, str(port), str(key)]}
    top = {"registry_url": registry.url, "api_key_file": str(key), "api_key_label": "team-a"}
    with running(tmp_path, port=port, backend=backend, top=top) as node:
        node.start()
        node.ready()
        record = until("the server's record", lambda: server_record(registry, "r1-server"))
        assert record["metadata"]["api_key_label"] == "team-a"
        told = [ask(f"http://127.0.0.1:{port + 1}{path}") for path in ("/info", "/health", "/timeline")]
        argv = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (node.babysitters[0].pid, *shims(node.place()))]
        written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path != key)
        assert "sk-secret" not in json.dumps([record, told, ask(f"{registry.url}/services")])
        assert b"sk-secret" not in b"".join([written, *argv])


def test_server_that_wants_a_key_is_still_asked_with_it_after_a_reload_W31(tmp_path: Path) -> None:
    key, port = tmp_path / "key", free_port()
    key.write_text("sk-secret\n")
    key.chmod(0o600)
    backend = {"type": "command", "command": sys.executable, "args": ["-I", "-S", "-c", KEYED, str(port), str(key)]}
    with running(tmp_path, port=port, backend=backend, top={"api_key_file": str(key)}) as node:
        node.start()
        node.ready()
        node.top = {**node.top, "expected_models": ["other"]}
        assert node.config
        assert "other" in node.status("unhealthy")["error_message"]  # it was let in, and listed its models
