"""Real babysitters and mock servers under an agent: all of it killed, and deleted at any moment."""

import asyncio
import json
import os
import signal
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from babysitter import identity
from babysitter.agent import processes
from tests.babysitter.agent.agent_process import AgentProcess, agent
from tests.babysitter.agent.conftest import StartAgent, create, port_range, reached
from tests.babysitter.conftest import Registry
from tests.babysitter.real import PROJECT, ask, shims, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
BABYSITTER = [sys.executable, "-m", "tests.babysitter.agent.mock_babysitter"]
QUICK = '{"babysitter": {"restart_delay": 0.1, "drain_s": 1, "stop_grace_s": 1}, "probes": {"start_interval_s": 0.1}}'
LEGAL = {"ready", "failed", "stopped", "waiting_for_ready", "starting"}


def settings(directory: Path) -> dict[str, Any]:
    path = directory / "babysitters.json"
    path.write_text(QUICK)
    return {"babysitter_command": BABYSITTER, "babysitter_config": str(path)}


def bearers(root: Path) -> list[int]:
    """Every process that carries the mark of one of the replicas' attempts."""
    return [it.pid for entry in root.glob("*/attempts/*") for it in identity.bearers(entry.name)]


def everything(node: AgentProcess) -> list[int]:
    """Babysitters, shims and servers."""
    babysitters = [it.process.pid for found in processes.scan(node.root).values() for it in found]
    return [*babysitters, *shims(node.root), *bearers(node.root)]


def kill(pids: list[int]) -> list[int]:
    """Kill them, and tell whom; some may have died of the others' death."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


def mock(*words: str) -> dict[str, Any]:
    return {"full_config": {"mock": list(words)}}


def test_a_node_that_was_killed_whole_comes_back_whole_E6(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(PROJECT)}
    with agent(tmp_path, settings=settings(tmp_path), env=env) as node:
        node.start()
        ready = node.create()
        loading = node.create(**mock("--slow-start-s", "3600"))
        broken = node.create(**mock("--no-such-flag"))
        stopping = node.create(**mock("--ignore-sigterm"))
        for replica_id in (ready, stopping):
            node.reached(replica_id, "ready")
        node.reached(loading, "waiting_for_ready")
        ask(f"{node.url}/api/v1/replicas/{stopping}/stop", {})
        fresh = node.create()
        node.end(signal.SIGKILL)
        until("all are dead", lambda: not kill(everything(node)))
        began = time.monotonic()
        node.start()
        node.reached(ready, "ready")
        node.reached(fresh, "ready")
        node.reached(stopping, "stopped")
        node.reached(loading, "waiting_for_ready")
        assert node.info(broken)["status"] in LEGAL
        assert time.monotonic() - began < 60
        assert all(len(found) == 1 for found in processes.scan(node.root).values()), "one babysitter each"
        served = [it["replica_pid"] for it in node.infos().values() if it["status"] == "ready"]
        assert len(set(served)) == 2
        for replica_id in node.infos():
            ask(f"{node.url}/api/v1/replicas/{replica_id}/stop", {"force": True})
        for replica_id in node.infos():
            node.reached(replica_id, "stopped")
        until("nothing is left", lambda: not everything(node))


async def test_deletes_at_any_moment_leave_nothing_E2_J4(start_agent: StartAgent, tmp_path: Path) -> None:
    given = settings(tmp_path)
    client = await start_agent(
        babysitter_command=tuple(BABYSITTER),
        babysitter_config=Path(given["babysitter_config"]),
        stopped_retention_s=0,
        **port_range(),
    )
    root = tmp_path / "root"
    replica_ids = []
    for number in range(6):
        replica_ids.append(await create(client, **mock("--slow-start-s", "0.2")))
        await asyncio.sleep(0.25 * number)
        async with client.delete(f"/api/v1/replicas/{replica_ids[number]}") as answer:
            assert answer.status == 200
    for replica_id in replica_ids:
        await reached(client, replica_id, "")
    assert [
        path.name for path in root.iterdir() if path.name not in ("agent.lock", "state", "environments", "audit.jsonl")
    ] == []
    assert list((root / "state").iterdir()) == []
    assert processes.scan(root) == {}
    words = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert [line for line in words if any(replica_id in line for replica_id in replica_ids)] == []


def records(registry: Registry, token: str) -> set[str]:
    """Names that the registry lists to who has `token`."""
    asked = urllib.request.Request(f"{registry.url}/services", headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - our own
    with suppress(OSError), urllib.request.urlopen(asked, timeout=5) as answer:  # noqa: S310 - see above
        return {it["name"] for it in json.load(answer)["services"]}
    return set()


def test_tokens_that_are_turned_on_reach_babysitters_that_run_W54(tmp_path: Path, registry: Registry) -> None:
    """As the security guide has it: the registry, then the agent, get their token files and are started again."""
    token, files = "a" * 40, {"admin": tmp_path / "admin", "register": tmp_path / "register"}
    for name, file in files.items():
        file.write_text(name[0] * 40)
        file.chmod(0o600)
    given = {**settings(tmp_path), "registry_url": registry.url}
    with agent(tmp_path, settings=given, env={"PYTHONPATH": str(PROJECT)}) as node:
        node.start()
        replica_ids = {node.create(), node.create()}
        served = {it: node.reached(it, "ready")["replica_pid"] for it in replica_ids}
        names = {f"{it}-server" for it in replica_ids}
        until("they are listed", lambda: names <= records(registry, token))
        babysitters = processes.scan(node.root)
        registry.kill()
        registry.start(*(word for name, file in files.items() for word in (f"--{name}-token-file", str(file))))
        node.end()
        given["registry_token_file"] = str(files["register"])
        node.start()
        until("they are listed again", lambda: names <= records(registry, token), 60)
        assert {it: node.reached(it, "ready")["replica_pid"] for it in replica_ids} == served
        assert all(processes.scan(node.root)[it] != babysitters[it] for it in replica_ids)
