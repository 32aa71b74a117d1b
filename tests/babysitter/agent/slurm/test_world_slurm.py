"""Replicas as jobs of a real Slurm: agent, registry, router and babysitters as processes, four nodes on this machine."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.babysitter.agent.slurm.cluster import Cluster, cluster
from tests.babysitter.agent.slurm.fleet import LONG_S, Fleet, Load, fleet_on, wanted
from tests.babysitter.real import ask, until

pytestmark = [pytest.mark.world, pytest.mark.timeout(560)]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster(4) as made:
        yield made


@pytest.fixture
def fleet(tmp_path: Path, slurm: Cluster) -> Iterator[Fleet]:
    with fleet_on(slurm, tmp_path) as made:
        yield made


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
