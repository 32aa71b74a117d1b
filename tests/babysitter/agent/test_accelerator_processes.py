"""An agent that is killed at any moment has given no accelerator twice when it is back, and none is lost."""

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from babysitter.agent.model import ReplicaRecord
from babysitter.agent.store import ReplicaStore
from tests.babysitter.agent.agent_process import AgentProcess, agent
from tests.babysitter.agent.conftest import wanted
from tests.babysitter.real import ask, until

pytestmark = pytest.mark.e2e
COUNT = 8
ROUNDS = 3


def records(root: Path) -> list[ReplicaRecord]:
    return [record for record in ReplicaStore(root).records() if not record.over]


def check(node: AgentProcess) -> None:
    """Nothing twice, and what the environment says is what is remembered."""
    live = records(node.root)
    given = Counter(index for record in live for index in record.accelerators)
    assert all(times == 1 for times in given.values()), given
    assert all(record.env["CUDA_VISIBLE_DEVICES"] == ",".join(map(str, record.accelerators)) for record in live)


def test_kill_9_in_the_middle_of_creates_gives_nothing_twice(tmp_path: Path) -> None:
    settings = {"accelerators": {"kind": "cuda", "count": COUNT}}
    with agent(tmp_path, settings=settings) as node:
        for number in range(ROUNDS):
            node.start()

            def ask_for_more() -> None:
                while ask(f"{node.url}/api/v1/replicas", wanted(accelerators=1)) is not None:
                    pass

            threads = [threading.Thread(target=ask_for_more) for _ in range(3)]
            for thread in threads:
                thread.start()
            time.sleep(0.02 * number)
            node.end(signal.SIGKILL)
            for thread in threads:
                thread.join()
            check(node)
            live = records(node.root)
            node.start()
            free = COUNT - len(live)
            answers = [ask(f"{node.url}/api/v1/replicas", wanted(accelerators=1)) for _ in range(free + 1)]
            assert [answer.get("status") for answer in answers] == [*["pending"] * free, None]
            assert answers[-1]["error"] == "needs 1 cuda, none is free"
            check(node)
            for record in records(node.root)[:3]:
                ask(f"{node.url}/api/v1/replicas/{record.replica_id}/stop", {"force": True})
                node.reached(record.replica_id, "stopped")
            node.end(signal.SIGKILL)


def test_a_babysitter_that_is_started_again_has_the_same_ones(tmp_path: Path) -> None:
    with agent(tmp_path, settings={"accelerators": {"kind": "mlu", "count": 2}}) as node:
        node.start()
        replica_id = node.create(accelerators=2)
        node.reached(replica_id, "ready")
        node.end(signal.SIGKILL)
        node.settings = {"accelerators": {"count": 0}}  # the operator takes them away: who has them keeps them
        node.start()
        pid = int((node.root / "state" / f"{replica_id}.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        new = until(
            "another babysitter runs",
            lambda: (now := int((node.root / "state" / f"{replica_id}.pid").read_text())) != pid and now,
        )
        assert b"MLU_VISIBLE_DEVICES=0,1" in Path(f"/proc/{new}/environ").read_bytes().split(b"\0")
