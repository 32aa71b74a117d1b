"""An agent takes changed settings while it serves; its replicas do not notice."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from babysitter.agent import processes, reload
from babysitter.agent.api import AGENT
from babysitter.agent.launch_spec import make_launch_spec
from babysitter.agent.settings import AgentSettings
from common.exits import ConfigurationError
from common.settings import SettingsError, needing_restart
from tests.babysitter.agent.agent_process import agent
from tests.babysitter.agent.conftest import Client, StartAgent, create, manager_of, reached, wanted
from tests.babysitter.real import ask, until

OLD, NEW = "o" * 40, "n" * 40


def token(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def apply(client: Client, **changes: Any) -> None:
    inside = manager_of(client)
    changed = AgentSettings(**{**inside.settings.model_dump(), **changes})
    reload.apply(client.app[AGENT], lambda now: make_launch_spec(now, dict(os.environ), inside.store.root), changed)


async def test_the_token_and_the_limits_change(start_agent: StartAgent, tmp_path: Path) -> None:
    client = await start_agent(token=OLD)
    apply(client, api_token_file=token(tmp_path / "t", NEW), max_replicas=1)
    for given, status in ((OLD, 401), (NEW, 200)):
        async with client.get("/api/v1/replicas", headers={"Authorization": f"Bearer {given}"}) as answer:
            assert answer.status == status
    apply(client, api_token_file=None)
    await create(client)
    async with client.post("/api/v1/replicas", json=wanted()) as answer:
        assert answer.status == 503
        assert "max_replicas is 1" in await answer.text()


async def test_new_babysitters_and_those_that_run_get_the_changed_file_W54(client: Client, tmp_path: Path) -> None:
    before = await create(client)
    await reached(client, before, "ready")
    config = tmp_path / "babysitters.toml"
    config.write_text("[probes]\nstall_s = 77\n")
    apply(client, babysitter_config=config)
    after = await create(client)
    root = manager_of(client).store.root
    assert json.loads((root / after / "babysitter.json").read_text())["probes"]["stall_s"] == 77
    controller = manager_of(client).controller(before)
    assert [it.is_outdated for it in (controller, manager_of(client).controller(after))] == [True, False]
    [old] = processes.scan(root)[before]
    async with asyncio.timeout(30):
        await controller.renew()
        while not controller.has_babysitter or controller.is_outdated:
            await asyncio.sleep(0.05)
    [new] = processes.scan(root)[before]
    assert new.process != old.process
    assert json.loads((root / before / "babysitter.json").read_text())["probes"]["stall_s"] == 77


@pytest.mark.timeout(300)
async def test_settings_with_which_one_babysitter_cannot_start_reach_no_other_W54(
    client: Client, tmp_path: Path
) -> None:
    ids = [await create(client) for _ in range(3)]
    for each in ids:
        await reached(client, each, "ready")
    inside, config = manager_of(client), tmp_path / "babysitters.toml"
    controllers = [inside.controller(each) for each in ids]
    config.write_text("[probes]\nstall_s = 77\n")
    apply(client, babysitter_config=config, babysitter_command=("sh", "-c", "exit 78"))
    renewal = asyncio.create_task(inside.renew())
    async with asyncio.timeout(200):  # it tries a few times, and waits longer in between
        while sum(controller.record.fault is not None for controller in controllers) < 1:
            await asyncio.sleep(0.05)
    await asyncio.sleep(1)
    assert (
        sum(controller.record.fault is None and controller.has_babysitter for controller in controllers) == len(ids) - 1
    )
    renewal.cancel()


@pytest.mark.parametrize("text", ["[probes]\nstall_s = 'long'\n", "no toml"])
async def test_a_fault_in_the_babysitters_file_changes_nothing(client: Client, tmp_path: Path, text: str) -> None:
    config = tmp_path / "babysitters.toml"
    config.write_text(text)
    with pytest.raises((ConfigurationError, SettingsError)):
        apply(client, babysitter_config=config, max_replicas=1, api_token_file=token(tmp_path / "t", NEW))
    await create(client)
    await create(client)


def test_every_setting_is_applied_or_needs_a_restart() -> None:
    folder = Path(__file__).resolve().parents[3] / "babysitter" / "agent"
    used = "".join(
        (folder / f"{name}.py").read_text()
        for name in ("manager", "launch_spec", "registration", "reload", "api", "__main__")
    )
    settings = AgentSettings.model_fields.keys() - needing_restart(AgentSettings)
    assert [name for name in sorted(settings) if f"settings.{name}" not in used] == []


@pytest.mark.e2e
def test_a_process_reloads_by_signal_and_by_file_and_keeps_its_replicas(tmp_path: Path) -> None:
    with agent(tmp_path) as node:
        node.start()
        replica_id = node.create()
        info = node.reached(replica_id, "ready")
        config = node.directory / "agent.json"
        good = json.loads(config.read_text())
        config.write_text(json.dumps({**good, "max_replicas": 0}))
        until("the fault is told", lambda: "config.refused" in node.log)
        config.write_text(json.dumps({**good, "max_replicas": 1, "starts_at_once": 2}))
        until("the change is told", lambda: "config.reloaded" in node.log)
        line = next(json.loads(line) for line in node.log.splitlines() if "config.reloaded" in line)
        assert (line["changed"], line["need_restart"]) == (["max_replicas"], ["starts_at_once"])
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        until("the signal is heard", lambda: node.log.count("config.reloaded") > 1)
        assert ask(f"{node.url}/health")["capacity"] == 1
        assert node.infos() == {replica_id: info}
