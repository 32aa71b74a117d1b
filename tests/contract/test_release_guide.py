"""The release server's guide, walked with a real agent and a real babysitter around the stand-in server.

How a build is installed is walked by tests/e2e/test_replica_api.py, over a real index; here the node's own Python has the
server already. The steps stand in the guide's order and share one replica.
"""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tomli
import yaml

from babysitter.lifecycle import ReplicaState, wire_status
from tests.babysitter.agent.agent_process import PLAIN
from tests.babysitter.agent.conftest import end_all, port_range
from tests.babysitter.real import ask, until
from tests.babysitter.stand_in.wheels import SERVER
from tests.contract.walk import Step, Verdict
from tests.e2e.node import ROOT
from tests.e2e.test_replica_api import EXAMPLE
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
SAME, RENAMED, NOT_NEEDED, THEIRS = Verdict.SAME, Verdict.RENAMED, Verdict.NOT_NEEDED, Verdict.THEIRS
STATUSES = ("pending", "creating", "starting", "waiting_for_ready", "ready", "unhealthy", "failed", "stopped")
INFO = (
    "replica_id server_mode model_name status display_status endpoint base_url host port workdir venv_path compile_wsjob "
    "execute_wsjob created_at ready_at"
).split()


@dataclass
class Service:
    """The agent as the guide starts the old service: plain variables and a config.yaml."""

    folder: Path
    port: int = field(default_factory=free_port)
    replica: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> Path:
        return self.folder / "replicas"

    @property
    def api(self) -> str:
        return f"http://localhost:{self.port}/api/v1"

    def start(self, **env: str) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in PLAIN}
        given = {"CONFIG_FILE": str(self.folder / "config.yaml"), "PORT": str(self.port), "LOG_LEVEL": "DEBUG", **env}
        with (self.folder / "agent.log").open("ab") as out:
            argv = [sys.executable, "-m", "babysitter.agent"]
            self.process = subprocess.Popen(argv, cwd=ROOT, env={**kept, **given}, stdout=out, stderr=out)
        until("the service answers", lambda: ask(f"{self.api}/health"))

    def end(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(100)

    def info(self) -> dict[str, Any]:
        return dict(ask(f"{self.api}/replicas/{self.replica}")["info"])

    def reached(self, status: str) -> dict[str, Any]:
        return dict(until(status, lambda: (found := self.info())["status"] == status and found))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("release")
    entry = folder / "own/lib/python3.11/site-packages/cerebras/inference/workload/main.py"
    entry.parent.mkdir(parents=True)
    entry.write_text(SERVER)
    python = folder / "own/bin/python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{entry.parents[3]}" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    babysitters = {
        "cbclient": {"own_python": True, "python": str(python)},
        "babysitter": {"drain_s": 1, "stop_grace_s": 3},
        "probes": {"start_interval_s": 0.1},
    }
    (folder / "babysitter.yaml").write_text(yaml.safe_dump(babysitters))
    made = Service(folder)
    config = {
        "host": "127.0.0.1",
        "port": 1,  # PORT wins
        "log_level": "INFO",
        "local_workdir_root": str(made.root),
        "cleanup_on_shutdown": False,
        "babysitter_config": str(folder / "babysitter.yaml"),
        **port_range(),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    try:
        made.start()
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait()
        end_all(made.root)


def created(service: Service) -> None:
    """The guide's long example, word for word but for its app_tag, with `wait_for_ready`."""
    body = json.loads(EXAMPLE)
    del body["placement"]["app_tag"]
    body["full_config"]["stand_in"] = {"compile_s": 0.5, "execute_jobs": 1}
    request = urllib.request.Request(  # noqa: S310 - our own
        f"{service.api}/replicas", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - our own
        assert answer.status == 201
        told = json.load(answer)
    assert told["status"] == "pending"
    assert told["base_url"] is None
    assert told["message"] == f"Replica {told['replica_id']} created successfully"
    assert len(told["replica_id"]) == 12
    service.replica = told["replica_id"]


def becomes_ready(service: Service) -> None:
    info = service.reached("ready")
    assert info["display_status"] == "Active"
    assert info["endpoint"].startswith("http://")
    assert not info["endpoint"].startswith("http://127.")
    assert info["base_url"] == f"http://127.0.0.1:{info['port']}"
    assert len(info["compile_wsjob"]) == 1
    until("the execute job", lambda: len(service.info()["execute_wsjob"]) == 1)


def listed(service: Service) -> None:
    for query in ("", "?server_mode=inference", "?status=ready", "?model_name=llama3.1-8b"):
        told = ask(f"{service.api}/replicas{query}")
        assert (told["total"], [it["replica_id"] for it in told["replicas"]]) == (1, [service.replica]), query
    assert ask(f"{service.api}/replicas?status=failed")["total"] == 0


def shown(service: Service) -> None:
    told = ask(f"{service.api}/replicas/{service.replica}")
    assert told["replica_id"] == service.replica
    assert told["status"] == told["info"]["status"] == "ready"
    assert set(INFO) <= told["info"].keys()
    assert told["info"]["host"] is None
    assert told["info"]["created_at"].endswith("Z")


def health(service: Service) -> None:
    for url in (f"{service.api}/health", f"http://localhost:{service.port}/health"):
        told = ask(url)
        assert (told["status"], bool(told["version"])) == ("healthy", True)


def statuses(_service: Service) -> None:
    assert set(STATUSES) | {"stopping", "asleep"} == {wire_status(state) for state in ReplicaState}


def files(*names: str) -> Callable[[Service], None]:
    def check(service: Service) -> None:
        for name in names:
            assert (service.root / name.format(id=service.replica)).exists(), name

    return check


def state_file(service: Service) -> None:
    told = json.loads((service.root / "state" / f"{service.replica}.json").read_text())
    assert {*INFO, "replica_pid", "updated_at"} - {"replica_id", "host"} <= told.keys()
    assert told["status"] == "ready"
    babysitter = int((service.root / "state" / f"{service.replica}.pid").read_text())
    os.kill(babysitter, 0)


def run_meta(service: Service) -> None:
    text = (service.root / service.replica / "model_dir/cerebras_logs/run_meta.json").read_text()
    assert [job["id"] for job in json.loads(text)["compile_jobs"]] == service.info()["compile_wsjob"]


def survives(service: Service) -> None:
    """The service ends and starts again: the same server, ready, and its jobs known."""
    before = service.info()
    assert service.end() == 0
    os.kill(before["replica_pid"], 0)
    service.start()
    after = service.reached("ready")
    assert {name: after[name] for name in INFO} == {name: before[name] for name in INFO}
    assert after["replica_pid"] == before["replica_pid"]


def debug_lines(service: Service) -> None:
    assert '"level":"debug"' in (service.folder / "agent.log").read_text()


def monitored(service: Service) -> None:
    """A server that dies is started again, where the old service only said so."""
    pid = service.info()["replica_pid"]
    os.kill(pid, signal.SIGKILL)
    until("another server", lambda: service.info()["replica_pid"] not in (None, pid))
    service.reached("ready")


def deleted(service: Service) -> None:
    request = urllib.request.Request(f"{service.api}/replicas/{service.replica}", method="DELETE")  # noqa: S310 - our own
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - our own
        told = json.load(answer)
    assert (told["replica_id"], told["status"]) == (service.replica, "stopped")
    assert told["message"].startswith(f"Replica {service.replica} ")
    until("its server is gone", lambda: not (service.root / service.replica).exists())


def cleaned_up(service: Service) -> None:
    created(service)
    pid = service.reached("ready")["replica_pid"]
    assert service.end() == 0
    service.start(CLEANUP_ON_SHUTDOWN="true")
    assert service.end() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def has_program(_service: Service) -> None:
    scripts = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert "svc-agent" in scripts


def has_units(_service: Service) -> None:
    assert (ROOT / "deploy/systemd/inference-svc-agent.service").is_file()


WALK = (
    Step("pip install -e .; uvicorn release_server_service.main:app", RENAMED, has_program, now="svc-agent"),
    Step("docker build; docker compose up -d", RENAMED, has_units, now="systemd: replicas must outlive the service"),
    Step("CONFIG_FILE=config.yaml with its five keys; HOST PORT LOG_LEVEL LOCAL_WORKDIR_ROOT", SAME, health),
    Step("curl -X POST /api/v1/replicas with the long example", SAME, created),
    Step("curl /api/v1/replicas/ID until ready; endpoint, compile_wsjob, execute_wsjob", SAME, becomes_ready),
    Step("GET /replicas?server_mode=&status=&model_name=; jq .replicas[].replica_id", SAME, listed),
    Step("GET /replicas/ID, every member of info", SAME, shown),
    Step("GET /health", SAME, health),
    Step("the eight statuses", SAME, statuses),
    Step("state/ID.json, state/ID.pid", SAME, state_file),
    Step(
        "ID/request.json, ID/cbclient, worker and replica logs",
        SAME,
        files(
            *("{id}/request.json", "{id}/cbclient", "{id}/replica_stdout.log", "{id}/replica_stderr.log"),
            *("{id}/worker_stdout.log", "{id}/worker_stderr.log", "{id}/params.yaml"),
        ),
    ),
    Step("ID/model_dir/cerebras_logs/run_meta.json", SAME, run_meta),
    Step("detached mode: the service restarts, the replica and its jobs go on", SAME, survives),
    Step("LOG_LEVEL=DEBUG", SAME, debug_lines),
    Step("background monitoring of dead replicas", RENAMED, monitored, now="a dead server is started again"),
    Step("DELETE /replicas/ID", SAME, deleted),
    Step("CLEANUP_ON_SHUTDOWN=true", SAME, cleaned_up),
    Step("kubectl get pods, kubectl logs; journal of the cluster", THEIRS, now="jobs.state_command asks for it"),
    Step("ps aux | grep replica_worker.py; python -m pdb -p", THEIRS, now="the babysitter's pid is in state/ID.pid"),
    Step("pip install -e .[dev]; pytest tests/", THEIRS, now="script/test.sh"),
    Step("src/release_server_service/…, *_FIX.md", THEIRS, now="docs/architecture.md"),
    Step("devpi, app_tag and image tag conversions", THEIRS, now="walked by tests/e2e/test_replica_api.py"),
)


@pytest.mark.parametrize("step", [step for step in WALK if step.check], ids=lambda step: step.thing)
def test_the_release_servers_guide_holds(service: Service, step: Step) -> None:
    assert step.check is not None
    step.check(service)
