"""Replicas as jobs of a real Slurm: agent, registry, router and babysitters as processes, four nodes on this machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from tests.babysitter.agent.agent_process import AgentProcess
from tests.babysitter.agent.slurm.cluster import Cluster, cluster
from tests.babysitter.real import ask, until
from tests.ports import free_port
from tests.registry.processes import environment, running

pytestmark = [pytest.mark.world, pytest.mark.timeout(560)]
LONG_S = 240.0
TEMPLATE = """
[parameters.model]
required = true
[parameters.partition]
[parameters.gres]
[parameters.time_s]
type = "integer"
[parameters.token_delay_s]
type = "number"
default = 0
[slurm]
partition = "{partition}"
gres = "{gres}"
time_s = "{time_s}"
[babysitter]
drain_timeout_s = 15
stop_grace_s = 2
[probes]
start_interval_s = 0.2
[backend]
type = "mock"
models = ["{served_name}"]
args = ["--token-delay-s={token_delay_s}"]
"""


@dataclass
class Fleet:
    """What runs."""

    folder: Path
    cluster: Cluster
    agent: AgentProcess
    registry: str
    router: str

    def deployment(self, name: str) -> dict[str, Any]:
        return ask(f"{self.registry}/api/v1/deployments/{name}") or {}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.registry}/api/v1/deployments/{path}"
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=30) as answer:  # noqa: S310
            return json.load(answer)

    def ready(self, name: str, count: int, revision: int | None = None) -> dict[str, Any]:
        def check() -> Any:
            info = self.deployment(name)
            fits = revision is None or {it["revision"] for it in info.get("replicas", ())} == {revision}
            return info.get("ready") == count and len(info["replicas"]) == count and fits and info

        try:
            return dict(until(f"{name} has {count} ready", check, LONG_S))
        except AssertionError as error:
            raise AssertionError(
                f"{error}: {self.deployment(name)}\n{self.cluster.jobs()}\n{self.agent.log[-3000:]}"
            ) from error

    @property
    def trouble(self) -> str:
        """What router and agent complain of."""
        lines = (self.folder / "router.log").read_text().splitlines() + self.agent.log.splitlines()
        return "\n".join(line for line in lines if '"level":"info"' not in line)[-3000:]

    def jobs(self) -> list[tuple[int, str, str]]:
        return [job for job in self.cluster.jobs() if job[1].startswith("isvc-")]


@dataclass
class Load:
    """Clients that ask a model one after the other, and what they were answered."""

    url: str
    model: str
    clients: int = 4
    answered: int = 0
    failed: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self) -> None:
        body = {"model": self.model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 8}
        while not self._over.is_set():
            request = urllib.request.Request(  # noqa: S310 - ours
                f"{self.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - ours
                    json.load(answer)["choices"][0]
                self.answered += 1
            except urllib.error.HTTPError as error:
                self.failed.append(f"{error.code}: {error.read()[:300]!r}")
            except (OSError, ValueError, KeyError) as error:
                self.failed.append(repr(error))
            time.sleep(0.05)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster(4) as made:
        yield made


@pytest.fixture
def fleet(tmp_path: Path, slurm: Cluster) -> Iterator[Fleet]:
    router_port = free_port()
    with ExitStack() as stack:
        _, url = stack.enter_context(running(tmp_path))
        (tmp_path / "templates").mkdir()
        (tmp_path / "templates" / "mock.toml").write_text(TEMPLATE)
        settings = {
            "node": "cluster",
            "registry_url": url,
            "runner": "slurm",
            "slurm": {"poll_s": 1, "notice_s": 60},
            "accelerators": {"kind": "cuda", "count": 8},
            "heartbeat_interval": 0.5,
            "babysitter_command": [sys.executable, "-m", "babysitter"],
            "templates_dir": str(tmp_path / "templates"),
        }
        made = AgentProcess(tmp_path, settings=settings, env=slurm.env)
        made.start()
        with (tmp_path / "router.log").open("ab") as log:
            router = subprocess.Popen(
                [sys.executable, "-m", "router", "--port", str(router_port), "--registry-url", url],
                cwd=tmp_path,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            until("the registry knows the agent", lambda: (ask(f"{url}/api/v1/nodes") or {}).get("total"))
            yield Fleet(tmp_path, slurm, made, url, f"http://127.0.0.1:{router_port}")
        finally:
            if made.process is not None and made.process.poll() is None:
                made.end(signal.SIGKILL)
            os.kill(router.pid, signal.SIGTERM)
            router.wait(30)
            slurm.run("scancel", "--user=root")
            until("no job is left", lambda: not slurm.jobs())


def wanted(model: str, **changes: Any) -> dict[str, Any]:
    parameters = {"model": model, **changes.pop("parameters", {})}
    return {"template": "mock", "parameters": parameters, "dwell_s": 0, **changes}


def test_a_deployment_scales_rolls_and_survives_kills_with_no_failed_request_and_no_job_left(fleet: Fleet) -> None:
    fleet.call("PUT", "m", wanted("m", replicas={"min": 3, "max": 3}, accelerators=1))
    fleet.ready("m", 3)
    assert len(fleet.jobs()) == 3
    assert "gpu:1" in fleet.cluster.run("squeue", "--noheader", "--Format=tres-per-node:40")
    until("the router serves it", lambda: "m" in str(ask(f"{fleet.router}/v1/models")))
    with Load(fleet.router, "m") as load:
        before = {number for number, _, _ in fleet.jobs()}
        fleet.agent.end(signal.SIGKILL)
        fleet.agent.start()
        fleet.cluster.end("slurmctld", signal.SIGKILL)
        fleet.cluster.start("slurmctld")
        until("slurmctld is back", fleet.cluster.is_up)
        fleet.ready("m", 3)
        assert {number for number, _, _ in fleet.jobs()} == before, "nothing was started twice"
        fleet.call("POST", "m/scale", {"replicas": 4})
        fleet.ready("m", 4)
        fleet.call("POST", "m/scale", {"replicas": 2})
        fleet.ready("m", 2)
        fleet.call("PUT", "m", wanted("m", replicas={"min": 2, "max": 2}, parameters={"token_delay_s": 0.01}))
        fleet.ready("m", 2, revision=2)
    assert load.failed == [], fleet.trouble
    assert load.answered > 50
    fleet.call("DELETE", "m")
    until("no job is left", lambda: not fleet.jobs(), LONG_S)


def test_a_time_limit_is_warned_of_and_a_successor_takes_over_with_no_failed_request(fleet: Fleet) -> None:
    fleet.call("PUT", "t", wanted("t", parameters={"time_s": 120}))
    fleet.ready("t", 1)
    first = {number for number, _, _ in fleet.jobs()}
    until("the router serves it", lambda: "t" in str(ask(f"{fleet.router}/v1/models")))
    with Load(fleet.router, "t") as load:
        until("its first job is over", lambda: not first & {number for number, _, _ in fleet.jobs()}, LONG_S)
        fleet.ready("t", 1)
        time.sleep(2)
    assert load.failed == [], fleet.trouble
    assert load.answered > 50
    assert "TIMEOUT" not in str(fleet.cluster.jobs("all")), "it left by itself"
    fleet.call("DELETE", "t")
    until("no job is left", lambda: not fleet.jobs(), LONG_S)


def test_a_partition_that_is_not_there_fails_in_slurms_own_words(fleet: Fleet) -> None:
    body = {"backend": {"template": "mock", "parameters": {"model": "x", "partition": "nix"}}}
    replica_id = ask(f"{fleet.agent.url}/api/v1/replicas", body)["replica_id"]
    failed = fleet.agent.reached(replica_id, "failed")
    assert "invalid partition specified: nix" in failed["error_message"]
    assert fleet.jobs() == []
    refused = ask(
        f"{fleet.agent.url}/api/v1/replicas",
        {"backend": {**body["backend"], "parameters": {"model": "x", "partition": "a b"}}},
    )
    assert "slurm.partition" in refused["error"]


def test_a_job_in_the_queue_tells_its_place_and_when_slurm_expects_to_start_it(fleet: Fleet) -> None:
    fleet.cluster.run("sbatch", "--exclusive", "--nodes=4", "--time=10", "--output=/dev/null", "--wrap=sleep 600")
    until("the cluster is full", lambda: fleet.cluster.jobs("RUNNING"))
    replica_id = ask(
        f"{fleet.agent.url}/api/v1/replicas",
        {"backend": {"template": "mock", "parameters": {"model": "x", "time_s": 600}}},
    )["replica_id"]

    def queued() -> Any:
        stages = fleet.agent.info(replica_id).get("stages")
        return stages and stages[0].get("ends_at") and stages[0]

    stage = until("Slurm expects a start", queued)
    assert (stage["name"], stage["state"]) == ("queued", "running")
    assert "position 1 of 1 in partition main" in stage["detail"]

    def known() -> Any:
        info = (ask(f"{fleet.registry}/api/v1/replicas/{replica_id}") or {}).get("info", {})
        return info.get("stages") and info["stages"][0]["ends_at"]

    until("the registry knows when", known)
    ask(f"{fleet.agent.url}/api/v1/replicas/{replica_id}/stop", {})
    fleet.agent.reached(replica_id, "stopped")
    assert fleet.jobs() == []


def test_kill_9_of_the_agent_while_slurmctld_hangs_makes_one_job(fleet: Fleet) -> None:
    controller = fleet.cluster.processes["slurmctld"]
    controller.send_signal(signal.SIGSTOP)
    body = {"backend": {"template": "mock", "parameters": {"model": "x"}}, "request_id": "one"}
    replica_id = ask(f"{fleet.agent.url}/api/v1/replicas", body)["replica_id"]
    until("sbatch waits for its answer", (fleet.agent.root / replica_id / "job.json").exists)
    time.sleep(1)
    fleet.agent.end(signal.SIGKILL)
    fleet.agent.start()

    def told() -> bool:
        return "Slurm does not answer" in str(fleet.agent.info(replica_id).get("stages"))

    until("it is told", told, LONG_S)
    controller.send_signal(signal.SIGCONT)
    until("it is ready", lambda: fleet.agent.info(replica_id).get("status") == "ready", LONG_S)
    until("it has one job", lambda: len(fleet.jobs()) == 1)
    ever = [job for job in fleet.cluster.jobs("all") if job[1].endswith(replica_id)]
    assert sum(state in ("RUNNING", "COMPLETED", "FAILED") for _, _, state in ever) == 1, ever


def test_a_job_that_is_cancelled_or_whose_babysitter_is_killed_is_made_good(fleet: Fleet) -> None:
    body = {"backend": {"template": "mock", "parameters": {"model": "x"}}}
    replica_id = ask(f"{fleet.agent.url}/api/v1/replicas", body)["replica_id"]
    until("it is ready", lambda: fleet.agent.info(replica_id).get("status") == "ready", LONG_S)
    server = fleet.agent.info(replica_id)["replica_pid"]
    pid = int((fleet.agent.root / "state" / f"{replica_id}.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    until(
        "a babysitter is back",
        lambda: (it := fleet.agent.root / "state" / f"{replica_id}.pid").exists() and int(it.read_text()) != pid,
    )
    until("it is ready", lambda: fleet.agent.info(replica_id).get("status") == "ready")
    assert fleet.agent.info(replica_id)["replica_pid"] == server, "its server was adopted"
    ((number, _, _),) = fleet.jobs()
    fleet.cluster.run("scancel", str(number))
    until("another job is there", lambda: [job for job in fleet.jobs() if job[0] != number], LONG_S)
    until("it is ready", lambda: fleet.agent.info(replica_id).get("status") == "ready", LONG_S)
    assert len(fleet.jobs()) == 1


def test_a_node_that_fails_costs_its_job_and_another_is_made(fleet: Fleet) -> None:
    fleet.call("PUT", "n", wanted("n", replicas={"min": 2, "max": 2}))
    fleet.ready("n", 2)
    until("the router serves it", lambda: "n" in str(ask(f"{fleet.router}/v1/models")))
    before = {number for number, _, _ in fleet.jobs()}
    node = fleet.cluster.run("squeue", "--noheader", "--format=%N", f"--jobs={min(before)}").strip()
    with Load(fleet.router, "n") as load:
        fleet.cluster.end(node, signal.SIGKILL)
        try:
            until("its job is over", lambda: min(before) not in {number for number, _, _ in fleet.jobs()}, LONG_S)
            fleet.ready("n", 2)
        finally:
            fleet.cluster.start(node)
        until("the node is back", fleet.cluster.is_up, LONG_S)
        fleet.ready("n", 2)
    assert load.failed == [], fleet.trouble
    fleet.call("DELETE", "n")
    until("no job is left", lambda: not fleet.jobs(), LONG_S)


def test_nothing_secret_is_in_the_job_as_slurm_shows_it(fleet: Fleet) -> None:
    body = {"backend": {"template": "mock", "parameters": {"model": "x"}}}
    fleet.agent.end()
    (fleet.folder / "token").write_text("s3cret-token-of-the-registry-0123456789\n")
    (fleet.folder / "token").chmod(0o600)
    fleet.agent.settings["registry_token_file"] = str(fleet.folder / "token")
    fleet.agent.start(HF_TOKEN="s3cret-of-the-hub")
    ask(f"{fleet.agent.url}/api/v1/replicas", body)
    ((number, _, _),) = until("its job is there", fleet.jobs)
    shown = fleet.cluster.run("scontrol", "show", "job", "-dd", str(number))
    fleet.cluster.run("scontrol", "write", "batch_script", str(number), str(fleet.folder / "script"))
    saved = b"".join(it.read_bytes() for it in (fleet.cluster.work / "state").rglob("*") if it.is_file())
    assert "s3cret" not in shown + (fleet.folder / "script").read_text()
    assert b"s3cret" not in saved
