"""What a job does on its node before it starts a babysitter, without a Slurm."""

import os
import signal
import socket
import sys
from pathlib import Path

import msgspec
import pytest

from babysitter.agent.slurm import node
from babysitter.agent.slurm.commands import SlurmCommands
from babysitter.agent.slurm.node import Keeper, Unready, environment, free_port, prepare
from babysitter.agent.slurm.place import ORDER, Order, read_where
from babysitter.agent.slurm.runner import SlurmJob
from common import lock_file
from tests.ports import free_port as lend


def order(first: int, count: int = 6) -> Order:
    return Order(command=["x"], env={}, host="127.0.0.1", first_port=first, last_port=first + count - 1)


def test_jobs_of_one_node_begin_at_places_of_their_own_and_pass_over_what_is_taken() -> None:
    first = lend()
    made = order(first)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", first + 3))
        taken.listen()
        found = [free_port(made, job) for job in (0, 1, 2)]
    assert found[0] == first
    assert found[1] == first + 4, "the babysitter's port of the pair between is taken"
    assert found[2] == first + 4


def test_a_node_without_free_ports_says_so() -> None:
    first = lend()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        with pytest.raises(Unready, match="no two ports"):
            free_port(order(first, 2), 7)


def test_the_agents_environment_is_the_jobs_but_for_what_slurm_and_the_node_say() -> None:
    agents = {"PATH": "/agents", "HF_HOME": "/h", "CUDA_VISIBLE_DEVICES": "7", "SLURM_JOB_ID": "1", "TMPDIR": "/t"}
    nodes = {"PATH": "/nodes", "CUDA_VISIBLE_DEVICES": "0", "SLURM_JOB_ID": "2", "SLURMD_NODENAME": "n1"}
    assert environment(agents, nodes) == {
        "PATH": "/agents", "HF_HOME": "/h", "CUDA_VISIBLE_DEVICES": "0", "SLURM_JOB_ID": "2", "SLURMD_NODENAME": "n1",
    }  # fmt: skip


def test_a_job_waits_for_the_babysitter_that_still_holds_the_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ORDER).write_bytes(msgspec.json.encode(order(lend())))
    monkeypatch.setattr(node, "LOCK_WAIT_S", 0.0)
    with lock_file.held(tmp_path / "lock"), pytest.raises(Unready, match="another babysitter"):
        prepare(tmp_path, 3)
    _, port = prepare(tmp_path, 3)
    where = read_where(tmp_path)
    assert where is not None
    assert (where.job, where.host, where.port) == (3, "127.0.0.1", port)


def test_where_an_earlier_job_ran_is_not_where_this_one_does(tmp_path: Path) -> None:
    (tmp_path / ORDER).write_bytes(msgspec.json.encode(order(lend())))
    prepare(tmp_path, 3)
    job = SlurmJob(SlurmCommands({}), "isvc-x", tmp_path, 4)
    assert job.where is None


@pytest.mark.e2e
def test_a_babysitter_that_dies_is_started_again_and_one_that_ends_is_not(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal, sys; p = pathlib.Path(sys.argv[1]); n = int(p.read_text() or 0) if p.exists() else 0;"
        "p.write_text(str(n + 1));"
        "os.kill(os.getpid(), signal.SIGKILL) if n == 0 else None; print(sys.argv[2:]); sys.exit(78)"
    )
    pid = os.fork()
    if pid == 0:
        os._exit(Keeper([sys.executable, "-c", script, str(tmp_path / "n")], dict(os.environ), 60).run())
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 78
    assert (tmp_path / "n").read_text() == "2"


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slurms_signals_reach_the_babysitter(tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "import pathlib, signal, sys; take = {signal.SIGUSR1, signal.SIGTERM}; signal.pthread_sigmask(signal.SIG_BLOCK, take);"
        "pathlib.Path(sys.argv[1]).touch(); sys.exit(10 + signal.sigwait(take))"
    )
    ready = tmp_path / "ready"
    pid = os.fork()
    if pid == 0:
        os._exit(Keeper([sys.executable, "-c", script, str(ready)], dict(os.environ), 60).run())
    while not ready.exists():
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, number)
    if number is signal.SIGTERM:
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 10 + signal.SIGTERM
        return
    # A babysitter that is started again after the warning is warned as well: it ends with the same code each time.
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (10 + signal.SIGUSR1, 0)
