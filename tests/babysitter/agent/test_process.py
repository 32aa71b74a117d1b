"""The agent as a process: it is killed, restarted, started twice; its replicas do not notice."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from babysitter import identity
from babysitter.agent import processes
from babysitter.agent.model import ReplicaRecord
from babysitter.agent.store import ReplicaStore
from babysitter.memory import SavedReplica
from tests.babysitter.agent.agent_process import agent
from tests.babysitter.agent.conftest import wanted
from tests.babysitter.real import PROJECT, ask, until
from tests.ports import free_port

pytestmark = pytest.mark.e2e


def babysitters(root: Path) -> dict[str, list[int]]:
    return {name: [it.process.pid for it in found] for name, found in processes.scan(root).items()}


def killed(root: Path) -> bool:
    """Kill all babysitters; True when there were any. One whose agent died between fork and exec is found a moment later."""
    found = [babysitter.process for of_one in processes.scan(root).values() for babysitter in of_one]
    for process in found:
        identity.send(process, signal.SIGKILL)
    return bool(found)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_replicas_outlive_their_agent_and_are_adopted(tmp_path: Path, number: signal.Signals) -> None:
    with agent(tmp_path) as node:
        node.start()
        replica_ids = [node.create() for _ in range(3)]
        for replica_id in replica_ids:
            node.reached(replica_id, "ready")
        before, infos = babysitters(node.root), node.infos()
        node.end(number)
        assert babysitters(node.root) == before
        node.start()
        assert node.infos() == infos
        assert babysitters(node.root) == before, "adopted, not started again"
        ask(f"{node.url}/api/v1/replicas/{replica_ids[0]}/stop", {})
        node.reached(replica_ids[0], "stopped")
        assert set(babysitters(node.root)) == set(replica_ids[1:])


def test_an_acknowledged_create_survives_kill_9_E3(tmp_path: Path) -> None:
    with agent(tmp_path) as node:
        node.start()
        made: list[str] = []

        def ask_for_more() -> None:
            while True:
                answer = ask(f"{node.url}/api/v1/replicas", wanted())
                if answer is None:
                    return
                made.append(answer["replica_id"])

        threads = [threading.Thread(target=ask_for_more) for _ in range(4)]
        for thread in threads:
            thread.start()
        until("some were made", lambda: len(made) > 12)
        node.end(signal.SIGKILL)
        for thread in threads:
            thread.join()
        node.start()
        assert set(made) <= set(node.infos())
        for replica_id in node.infos():
            node.reached(replica_id, "ready")
        assert all(len(pids) == 1 for pids in babysitters(node.root).values())
        assert list(node.root.glob(".new-*")) == []


def test_a_replica_that_was_stopped_while_no_agent_ran_stays_stopped(tmp_path: Path) -> None:
    with agent(tmp_path) as node:
        node.start()
        replica_id = node.create()
        port = node.reached(replica_id, "ready")["port"]
        node.end(signal.SIGKILL)
        ask(f"http://127.0.0.1:{port + 1}/stop", {})
        until("it has stopped", lambda: not babysitters(node.root))
        node.start()
        node.reached(replica_id, "stopped")
        assert babysitters(node.root) == {}


def test_a_second_agent_on_the_same_root_refuses_E9(tmp_path: Path) -> None:
    with agent(tmp_path) as node:
        node.start()
        assert node.process is not None
        node.port, first = free_port(), node.process.pid
        second = node.spawn()
        assert second.wait(60) == 78
        assert f"another agent (pid {first}) has it" in node.log


def test_every_phase_ends_legally_after_all_were_killed_E6(tmp_path: Path) -> None:
    with agent(tmp_path) as node:
        node.start()
        ready = node.create()
        failed = node.create(full_config={"light": {"status": "failed"}})
        waiting = node.create(full_config={"light": {"status": "waiting_for_ready"}})
        deaf = node.create(full_config={"light": {"deaf": True}})
        node.reached(ready, "ready")
        node.reached(failed, "failed")
        node.reached(waiting, "waiting_for_ready")
        node.reached(deaf, "ready")
        ask(f"{node.url}/api/v1/replicas/{deaf}/stop", {})
        node.reached(deaf, "stopping")
        pending = node.create()
        node.end(signal.SIGKILL)
        until("all are dead", lambda: not killed(node.root))
        node.start()
        until("one babysitter each", lambda: {ready, failed, waiting, pending} <= set(babysitters(node.root)))
        node.reached(ready, "ready")
        node.reached(pending, "ready")
        node.reached(failed, "failed")
        node.reached(waiting, "waiting_for_ready")
        assert node.info(deaf)["status"] in {"stopping", "stopped"}
        ask(f"{node.url}/api/v1/replicas/{deaf}/stop", {"force": True})
        node.reached(deaf, "stopped")
        assert all(len(pids) == 1 for pids in babysitters(node.root).values())


def test_cleanup_on_shutdown_leaves_nothing_running(tmp_path: Path) -> None:
    with agent(tmp_path) as node:
        node.start(CLEANUP_ON_SHUTDOWN="true")
        for replica_id in [node.create() for _ in range(3)]:
            node.reached(replica_id, "ready")
        assert node.end() == 0
        assert babysitters(node.root) == {}
        node.start()
        assert {it["status"] for it in node.infos().values()} == {"stopped"}


def test_a_restarted_agent_shows_100_replicas_within_two_seconds(tmp_path: Path) -> None:
    store = ReplicaStore(tmp_path / "root")
    store.acquire()
    for number in range(100):
        replica_id = f"replica-{number:04}"
        record = ReplicaRecord(replica_id, 20_000 + 2 * number, replica_id, "d", "t", fault="none shall start")
        store.create(record, b"{}", b"{}", SavedReplica(replica_id=replica_id))
    store.release()
    with agent(tmp_path) as node:
        began = time.monotonic()
        node.start()
        listening = time.monotonic()
        assert len(node.infos()) == 100
        assert time.monotonic() - listening < 2
        assert listening - began < 30  # a Python that starts on a busy machine


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_the_release_servers_variables_and_file_are_read(tmp_path: Path, suffix: str) -> None:
    port, root = free_port(), tmp_path / "there"
    text = {"yaml": "host: 127.0.0.1\nport: 1\nlog_level: DEBUG\n", "json": '{"port": 1, "log_level": "DEBUG"}'}[suffix]
    config = tmp_path / f"config.{suffix}"
    config.write_text(text)
    variables = {"CONFIG_FILE": str(config), "SERVICE_PORT": str(port), "LOCAL_WORKDIR_ROOT": str(root)}
    with (tmp_path / "log").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "babysitter.agent"],
            cwd=PROJECT,
            env={**os.environ, **variables},
            stderr=out,
            stdout=out,
        )
    try:
        until("it answers where the environment says", lambda: ask(f"http://127.0.0.1:{port}/health"))
        assert (root / "agent.lock").exists()
    finally:
        process.kill()
        process.wait()


USELESS = [
    ({"PORT": "x"}, "environment PORT: 'port'"),
    ({"HOST": "0.0.0.0"}, "refusing to listen on 0.0.0.0 without tokens"),
    ({"CONFIG_FILE": "/nowhere.yaml"}, "/nowhere.yaml: cannot be read"),
    ({"SVC_AGENT_BABYSITTER_CONFIG": "/nowhere.toml"}, "/nowhere.toml: cannot be read"),
    ({"LOCAL_WORKDIR_ROOT": "/proc/x"}, "local_workdir_root /proc/x: cannot be used"),
    ({"SVC_AGENT_BABYSITTER_CONFIG": "{named}"}, "'name', 'port' and 'backend' are each replica's own"),
    ({"SVC_AGENT_LAST_PORT": "1024"}, "last_port must be greater than first_port"),
]


def test_settings_of_no_use_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "named.toml").write_text('name = "mine"\n')
    named = str(tmp_path / "named.toml")
    started = []
    for number, (given_env, _) in enumerate(USELESS):
        env = {name: value.replace("{named}", named) for name, value in given_env.items()}
        root = str(tmp_path / str(number))
        given = {**os.environ, "LOCAL_WORKDIR_ROOT": root, "PORT": str(free_port()), **env}
        command = [sys.executable, "-m", "babysitter.agent"]
        started.append(subprocess.Popen(command, cwd=PROJECT, env=given, stderr=subprocess.PIPE, text=True))
    for process, (_, said) in zip(started, USELESS, strict=True):
        told = process.communicate(timeout=60)[1]
        assert process.returncode == 78, told
        assert said in told
