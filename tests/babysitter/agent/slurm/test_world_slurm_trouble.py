"""What a real Slurm can do to replicas besides: mock and real models together, Slurm away for long, an account that is not ours."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.babysitter.agent.slurm.cluster import ACCOUNT, NOT_OURS, Cluster, cluster
from tests.babysitter.agent.slurm.fleet import LONG_S, Fleet, Load, fleet_on, wanted
from tests.babysitter.real import PROJECT, ask, until
from tests.engines import llama_cpp
from tests.engines.install import HERE

AWAY_S = float(os.environ.get("SLURM_AWAY_S", "60"))
"""How long slurmctld is away; an hour's run may say 600."""
pytestmark = [pytest.mark.world, pytest.mark.timeout(540 + AWAY_S)]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster(4) as made:
        yield made


def llama_server(folder: Path) -> str:
    """A PATH on which the shipped template finds its program."""
    folder.mkdir()
    program = folder / "llama-server"
    words = shlex.join([str(llama_cpp.python()), str(HERE / "llama_server.py")])
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def svcctl(fleet: Fleet, *argv: str) -> str:
    command = [sys.executable, "-m", "ctl", "--registry-url", fleet.registry, *argv]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=fleet.folder, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def places(fleet: Fleet) -> dict[str, str]:
    """The node of each job of ours, by the job's name."""
    lines = fleet.cluster.run("squeue", "--noheader", "--states=RUNNING", "--format=%j|%N").splitlines()
    return dict(line.split("|") for line in lines if line.startswith("isvc-"))


def node_of(fleet: Fleet, deployment: str) -> str:
    """Where the only replica of a deployment is."""
    (replica,) = fleet.deployment(deployment)["replicas"]
    return next(node for job, node in places(fleet).items() if job.endswith(replica["replica_id"]))


def test_apply_brings_up_three_mock_and_a_real_model_which_nothing_costs_a_request(
    tmp_path: Path, slurm: Cluster
) -> None:
    with fleet_on(slurm, tmp_path, PATH=llama_server(tmp_path / "bin")) as fleet:
        mock = wanted("m", replicas={"min": 3, "max": 3}, accelerators=1)
        real = {"template": "llama-cpp", "parameters": {"model": str(llama_cpp.model()), "ctx_size": 512}}
        file = tmp_path / "fleet.yaml"
        file.write_text(yaml.safe_dump({"deployments": {"m": mock, "real": real}}))
        svcctl(fleet, "apply", "-f", str(file), "--wait", "--timeout", "240")
        fleet.ready("m", 3)
        fleet.ready("real", 1)
        assert len(fleet.jobs()) == 4
        until("the router serves m", lambda: "'m'" in str(ask(f"{fleet.router}/v1/models")))
        until("the router serves real", lambda: "'real'" in str(ask(f"{fleet.router}/v1/models")))
        with Load(fleet.router, "m") as load, Load(fleet.router, "real", clients=1) as real_load:
            svcctl(fleet, "scale", "m", "4")
            fleet.ready("m", 4)
            mock["parameters"]["token_delay_s"] = 0.01
            file.write_text(yaml.safe_dump({"deployments": {"m": mock, "real": real}}))
            svcctl(fleet, "apply", "-f", str(file))
            fleet.ready("m", 3, revision=2)
            slurm.end("slurmctld", signal.SIGKILL)
            slurm.start("slurmctld")
            until("slurmctld is back", slurm.is_up)
            keeps = node_of(fleet, "real")
            slurm.run("scontrol", "update", f"NodeName={keeps}", "State=DRAIN", "Reason=test")
            dying = next(node for node in places(fleet).values() if node != keeps)
            lost = {job for job, node in places(fleet).items() if node == dying}
            slurm.end(dying, signal.SIGKILL)
            try:
                until("its jobs are over", lambda: dying not in places(fleet).values(), LONG_S)
                fleet.ready("m", 3)
            finally:
                slurm.start(dying)
                slurm.run("scontrol", "update", f"NodeName={keeps}", "State=RESUME")
            until("the nodes are back", slurm.is_up, LONG_S)
        assert lost
        assert (load.failed, real_load.failed) == ([], []), fleet.trouble
        assert load.answered > 50
        assert real_load.answered > 5
        for name in ("m", "real"):
            fleet.call("DELETE", name)
        until("no job is left", lambda: not fleet.jobs(), LONG_S)


def test_slurm_away_for_long_costs_no_request_and_what_was_asked_meanwhile_is_made_once(
    tmp_path: Path, slurm: Cluster
) -> None:
    with fleet_on(slurm, tmp_path) as fleet:
        fleet.call("PUT", "m", wanted("m", replicas={"min": 2, "max": 3}))
        fleet.ready("m", 2)
        before = {number for number, _, _ in fleet.jobs()}
        until("the router serves it", lambda: "m" in str(ask(f"{fleet.router}/v1/models")))
        with Load(fleet.router, "m", clients=2) as load:
            slurm.end("slurmctld")
            gone_at = time.monotonic()
            fleet.call("POST", "m/scale", {"replicas": 3})

            def told() -> bool:
                infos = (ask(f"{fleet.agent.url}/api/v1/replicas") or {}).get("replicas", ())
                return any("Slurm does not answer" in str(info.get("stages")) for info in infos)

            try:
                until("it is told", told, LONG_S)
                while time.monotonic() - gone_at < AWAY_S:
                    assert fleet.deployment("m")["ready"] == 2
                    time.sleep(1)
                assert told()
            finally:
                slurm.start("slurmctld")
            fleet.ready("m", 3)
        assert load.failed == [], fleet.trouble
        now = {number for number, _, _ in fleet.jobs()}
        assert before <= now
        assert len(now) == 3
        fleet.call("DELETE", "m")
        until("no job is left", lambda: not fleet.jobs(), LONG_S)


def test_an_account_that_is_not_ours_fails_in_slurms_words_is_tried_ever_more_rarely_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    refusal = "Invalid account or account/partition combination specified"
    with cluster(1, accounting=True) as slurm, fleet_on(slurm, tmp_path) as fleet:

        def made(account: str) -> Any:
            body = {"backend": {"template": "mock", "parameters": {"model": "x", "account": account}}}
            return ask(f"{fleet.agent.url}/api/v1/replicas", body)["replica_id"]

        replica_id = made(NOT_OURS)
        assert refusal in fleet.agent.reached(replica_id, "failed")["error_message"]
        fleet.call("PUT", "d", wanted("d", parameters={"account": NOT_OURS}))
        until("the deployment tells it", lambda: refusal in str(fleet.deployment("d").get("reason")), LONG_S)
        began = fleet.deployment("d")
        time.sleep(15)
        tries = {replica["request_id"] for replica in fleet.deployment("d")["replicas"]}
        assert fleet.deployment("d")["phase"] == "failing", began
        assert len(tries) <= 1
        assert fleet.agent.log.count(refusal) <= 2 * 6, "pauses of 1, 2, 4 and 8 s allow five tries in 15 s"
        assert fleet.jobs() == []
        fleet.call("PUT", "d", wanted("d", parameters={"account": ACCOUNT}))
        fleet.ready("d", 1)
        assert ACCOUNT in fleet.cluster.run("squeue", "--noheader", "--format=%a")
        fleet.call("DELETE", "d")
        until("no job is left", lambda: not fleet.jobs(), LONG_S)
