"""A stop that was asked for is finished (W53), a mended file is believed (W56), a changed one is taken over (W31)."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from babysitter import identity
from babysitter.settings import BabysitterSettings
from common.settings import needing_restart
from tests.babysitter.conftest import Registry
from tests.babysitter.real import PROJECT, Node, ask, light, running, shims, until
from tests.ports import free_port

LONG = {"restart_delay": 60}
SLOW_DRAIN = {"drain_s": 30, **LONG}
FAILING = {"type": "command", "command": "sh", "args": ["-c", "exit 78"]}
OTHER_BOOT = "00000000-0000-4000-8000-000000000000"


def light_backend(port: int) -> dict[str, Any]:
    script = str(PROJECT / "tests" / "babysitter" / "light_server.py")
    return {"type": "command", "command": sys.executable, "args": ["-I", "-S", script, str(port)]}


def own(node: Node, path: str, body: Any = None) -> Any:
    return ask(f"http://127.0.0.1:{node.port + 1}{path}", body)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def busy(node: Node) -> subprocess.Popen[bytes]:
    """A request that the mock holds, so that a drain does not end by itself."""
    url = f"http://127.0.0.1:{node.port}"
    ask(f"{url}/mock/knobs", {"hold": True})
    client = subprocess.Popen(["curl", "-s", f"{url}/v1/completions", "-d", '{"prompt": "x"}'], stdout=subprocess.PIPE)
    ask(f"{url}/mock/state?wait_s=5&held=1")
    return client


MOCK = {"type": "mock", "models": ["m"]}


def test_stop_goes_on_when_its_detaching_babysitter_is_terminated_W53(tmp_path: Path) -> None:
    with running(tmp_path, backend=MOCK, restarts=SLOW_DRAIN, top={"on_exit": "detach"}) as node:
        babysitter = node.start()
        node.ready()
        with busy(node) as client:
            own(node, "/stop", {})
            node.status("stopping")
            babysitter.terminate()
            ask(f"http://127.0.0.1:{node.port}/mock/release", {})
            said, _ = client.communicate(timeout=60)
        assert json.loads(said)["choices"]
        assert babysitter.wait(60) == 0
        assert node.processes() == []
        assert node.state()["status"] == "stopped"


def test_stop_whose_babysitter_was_killed_is_finished_by_the_next_one_W53(tmp_path: Path) -> None:
    with running(tmp_path, backend=MOCK, restarts=SLOW_DRAIN, top={"on_exit": "detach"}) as node:
        first = node.start()
        node.ready()
        with busy(node) as client:
            own(node, "/stop", {})
            node.status("stopping")
            kill(first)
            assert node.processes() != []
            node.restarts = {**LONG, "drain_s": 0.5}
            second = node.start()
            assert second.wait(60) == 0
            client.wait(60)
        assert node.processes() == []
        assert node.state()["status"] == "stopped"
        node.start()
        node.ready()


def test_start_after_a_finished_stop_is_a_new_beginning_W53(tmp_path: Path) -> None:
    with light(tmp_path, restarts=LONG) as node:
        first = node.start()
        node.ready()
        own(node, "/stop", {})
        assert first.wait(60) == 0
        node.start()
        node.ready()


def test_stop_that_a_reboot_overtook_leaves_the_next_start_alone_W53(tmp_path: Path) -> None:
    with running(tmp_path, backend=MOCK, restarts=SLOW_DRAIN) as node:
        first = node.start()
        node.ready()
        with busy(node) as client:
            own(node, "/stop", {})
            node.status("stopping")
            end_all_as_a_reboot_does(node, first)
            client.wait(60)
        node.start()
        node.ready()


def end_all_as_a_reboot_does(node: Node, babysitter: subprocess.Popen[bytes]) -> None:
    """Everything dies at once, and what is on disk is of another boot."""
    pids = node.processes()
    kill(babysitter)
    for pid in [*shims(node.directory), *pids]:
        os.kill(pid, signal.SIGKILL)
    until("all are gone", lambda: not node.processes())
    for path in node.attempts_path.glob("*/*.json"):
        path.write_text(path.read_text().replace(json.loads(path.read_text()).get("boot_id", "-"), OTHER_BOOT))


def test_failed_replica_begins_anew_when_its_babysitter_is_started_by_hand_W56(tmp_path: Path) -> None:
    with light(tmp_path, restarts=LONG) as node:
        good, node.backend = node.backend, FAILING
        first = node.start()
        assert "exited with code 78" in node.status("failed")["error_message"]
        kill(first)
        node.backend = good
        node.start()
        node.ready()
        assert node.health()["restart_count"] == 0


def test_code_78_that_no_babysitter_saw_is_no_verdict_on_the_next_start_W56(tmp_path: Path) -> None:
    flag = tmp_path / "mended"
    port = free_port()
    words = f"test -e {flag} || {{ sleep 1; exit 78; }}; exec {sys.executable} {light_backend(port)['args'][2]} {port}"
    backend = {"type": "command", "command": "sh", "args": ["-c", words]}
    with running(tmp_path, port=port, backend=backend, restarts=LONG) as node:
        first = node.start()
        until("its server runs", lambda: node.report().get("replica_pid"))
        kill(first)
        until("its end", lambda: not shims(tmp_path))
        flag.touch()
        node.start()
        node.ready()


def test_command_that_did_not_exist_is_tried_again_at_once_once_it_does_W56(tmp_path: Path) -> None:
    with light(tmp_path, restarts=LONG) as node:
        work = tmp_path / "work"
        work.mkdir()
        node.backend = {**node.backend, "work_dir": str(work)}
        first = node.start()
        node.ready()
        work.rmdir()
        os.kill(node.processes()[0], signal.SIGKILL)
        node.status("starting")
        kill(first)
        work.mkdir()
        node.backend = {**node.backend, "env": {"MENDED": "1"}}
        node.start()
        node.ready()


def test_reboot_counts_no_restart_even_of_a_server_that_its_shutdown_ended_W56(tmp_path: Path) -> None:
    with light(tmp_path, restarts=LONG) as node:
        first = node.start()
        node.ready()
        end_all_as_a_reboot_does(node, first)
        (exit_file,) = [path / "exit.json" for path in node.attempts_path.iterdir()]
        exit_file.write_text(json.dumps({"code": 143, "boot_id": OTHER_BOOT}))
        (exit_file.parent / "server.json").unlink()
        node.start()
        node.ready()
        assert node.health()["restart_count"] == 0


@pytest.mark.parametrize("way", ["signal", "file"])
def test_changed_file_is_taken_over_as_far_as_the_server_allows_W31(
    tmp_path: Path, registry: Registry, way: str
) -> None:
    with light(tmp_path, top={"registry_url": registry.url}) as node:
        babysitter = node.start()
        pid = node.ready()
        assert node.health()["need_restart"] == []
        node.top = {**node.top, "metadata": {"rack": "b7"}, "weight": 3.0, "log_dir": str(tmp_path / "other")}
        node.backend = {**node.backend, "env": {"X": "1"}}
        assert node.config
        if way == "signal":
            babysitter.send_signal(signal.SIGHUP)
        until("told", lambda: node.health().get("need_restart") == ["backend", "log_dir"])

        def record() -> Any:
            services = (ask(f"{registry.url}/services") or {}).get("services", [])
            found = [one for one in services if one["name"] == "r1-server" and one["metadata"].get("rack") == "b7"]
            return found and found[0]

        assert until("registered anew", record)["weight"] == 3.0
        assert node.ready() == pid
        os.kill(pid, signal.SIGKILL)
        until("the new command runs", lambda: node.report().get("replica_pid") not in (None, pid))
        fresh = node.ready()
        assert b"X=1" in Path(f"/proc/{fresh}/environ").read_bytes().split(b"\0")
        assert node.health()["need_restart"] == ["log_dir"]


def test_host_of_another_machine_is_no_change_at_every_reload_W31(tmp_path: Path) -> None:
    with light(tmp_path, top={"host": "192.0.2.7"}) as node:
        node.start()
        node.ready()
        node.top = {**node.top, "metadata": {"rack": "b7"}}
        assert node.config
        until("reloaded", lambda: "config.reloaded" in node.log())
        assert node.health()["need_restart"] == []


def test_file_with_a_fault_changes_nothing_and_is_told_W31(tmp_path: Path) -> None:
    with light(tmp_path) as node:
        node.start()
        pid = node.ready()
        good = node.config.read_text()
        (tmp_path / "babysitter.json").write_text('{"port": "x"')
        assert "babysitter.json" in until("told", lambda: node.health().get("config_refused"))
        (tmp_path / "babysitter.json").write_text(good)
        until("well again", lambda: node.health() and node.health()["config_refused"] is None)
        assert node.ready() == pid


def test_adopted_server_that_is_older_than_the_file_is_told_W31(tmp_path: Path) -> None:
    with light(tmp_path, top={"on_exit": "detach"}) as node:
        first = node.start()
        pid = node.ready()
        first.terminate()
        first.wait(60)
        node.backend = {**node.backend, "env": {"X": "1"}}
        node.start()
        assert node.ready() == pid
        assert node.health()["need_restart"] == ["backend"]


def test_failed_replica_whose_file_is_mended_begins_again_by_itself_W56(tmp_path: Path) -> None:
    with light(tmp_path, restarts=LONG) as node:
        good, node.backend = node.backend, FAILING
        node.start()
        node.status("failed")
        node.backend = good
        assert node.config
        node.ready()


def test_hangup_during_the_start_ends_no_babysitter_W31(tmp_path: Path) -> None:
    with light(tmp_path) as node:
        babysitter = node.start()
        until("its lock", (tmp_path / "data" / "babysitter" / "r1" / "lock").exists)
        babysitter.send_signal(signal.SIGHUP)
        node.ready()
        assert babysitter.poll() is None


def test_every_setting_is_taken_over_or_waits_for_a_restart_W31() -> None:
    folder = Path(__file__).resolve().parents[2] / "babysitter"
    used = "".join((folder / f"{name}.py").read_text() for name in ("assemble", "__main__"))
    reloaded = BabysitterSettings.model_fields.keys() - needing_restart(BabysitterSettings)
    assert [name for name in sorted(reloaded) if f"settings.{name}" not in used] == []


def external(directory: Path, port: int) -> dict[str, Any]:
    """A server that another program runs, as a container engine does; the command only asks for it."""
    words = f"{sys.executable} {light_backend(port)['args'][2]} {port}"
    pid = directory / "external.pid"
    ask_for_it = f"echo '{words} & echo $! >{pid}' >{directory}/new && mv {directory}/new {directory}/wanted; sleep 0.2"
    return {"type": "command", "command": "sh", "args": ["-c", ask_for_it]}


class Engine:
    """Stands for a container engine: starts what is wanted, in no relation to whoever wants it."""

    def __init__(self, directory: Path) -> None:
        loop = f"while :; do if [ -e {directory}/wanted ]; then . {directory}/wanted; rm {directory}/wanted; fi; sleep 0.05; done"
        self.process = subprocess.Popen(["sh", "-c", loop], start_new_session=True, stdout=subprocess.DEVNULL)

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def test_external_server_is_judged_by_its_health_and_ended_by_its_command_W25(tmp_path: Path) -> None:
    port = free_port()
    pid_file = tmp_path / "external.pid"
    stop = ["sh", "-c", f"kill $(cat {pid_file}); while kill -0 $(cat {pid_file}) 2>/dev/null; do sleep 0.05; done"]
    top = {"server": "external", "stop_command": stop}
    probes = {"unhealthy_after": 1, "liveness_s": 0.5}
    engine = Engine(tmp_path)
    try:
        with running(tmp_path, port=port, backend=external(tmp_path, port), top=top, probes=probes) as node:
            first = node.start()
            node.status("ready")
            server = int(pid_file.read_text())
            kill(first)
            second = node.start()
            node.status("ready")
            assert int(pid_file.read_text()) == server
            os.kill(server, signal.SIGKILL)
            until("another one", lambda: node.health().get("restart_count") == 1)
            node.status("ready")
            again = int(pid_file.read_text())
            assert again != server
            own(node, "/stop", {})
            assert second.wait(60) == 0
            assert node.server("/health") is None
    finally:
        engine.close()


def test_external_server_that_its_command_leaves_behind_is_not_ended_with_it_W25(tmp_path: Path) -> None:
    port, pid_file = free_port(), tmp_path / "external.pid"
    words = f"setsid {sys.executable} {light_backend(port)['args'][2]} {port} & echo $! >{pid_file}"  # as podman run -d
    backend = {"type": "command", "command": "sh", "args": ["-c", words]}
    top = {"server": "external", "stop_command": ["sh", "-c", f"kill $(cat {pid_file})"]}
    with running(tmp_path, port=port, backend=backend, top=top) as node:
        first = node.start()
        node.status("ready")
        server = int(pid_file.read_text())
        kill(first)
        second = node.start()
        node.status("ready")
        assert int(pid_file.read_text()) == server
        node.top = {}  # it is still ended by the command that can
        assert node.config
        until("told", lambda: node.health().get("need_restart") == ["server"])
        own(node, "/stop", {})
        assert second.wait(60) == 0
        until("ended", lambda: identity.start_ticks(server) is None)


def test_external_server_without_a_stop_command_is_refused_W25(tmp_path: Path) -> None:
    with light(tmp_path, top={"server": "external"}) as node:
        assert node.start().wait(60) == os.EX_CONFIG
        assert "stop_command" in node.log()
