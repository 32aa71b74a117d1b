"""A registry takes changed tokens, networks and limits while it serves."""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from common.exits import ConfigurationError
from common.settings import needing_restart
from registry.access import files_of
from registry.reload import put_in_force
from registry.settings import RegistrySettings
from tests.registry.conftest import Client, StartClient, body, parts
from tests.registry.processes import running

OLD, NEW = "o" * 40, "n" * 40


def token(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def apply(client: Client, **settings: Any) -> None:
    put_in_force(parts(client), RegistrySettings(**settings))


async def test_tokens_change_and_watchers_must_show_theirs_again(start_registry: StartClient, tmp_path: Path) -> None:
    old, new = token(tmp_path / "old", OLD), token(tmp_path / "new", NEW)
    client = await start_registry(admin_token_file=str(old))
    watch = await client.get("/v1/watch", headers=bearer(OLD))
    assert (await watch.content.readline()).startswith(b'{"type":"snapshot"')
    apply(client, admin_token_file=str(new))
    async with asyncio.timeout(20):
        assert await watch.content.read() == b""
    assert (await client.get("/services", headers=bearer(OLD))).status == 401
    assert (await client.get("/services", headers=bearer(NEW))).status == 200


async def test_watchers_stay_when_no_token_changed(start_registry: StartClient) -> None:
    client = await start_registry()
    watch = await client.get("/v1/watch")
    await watch.content.readline()
    apply(client, max_services=5)
    await client.post("/services", json=body())
    async with asyncio.timeout(20):
        assert b'"type":"put"' in await watch.content.readline()
    watch.close()


async def test_networks_ports_and_limits_change(start_registry: StartClient) -> None:
    client = await start_registry()
    assert (await client.post("/services", json=body("a"))).status == 201
    apply(client, lowest_port=9100)
    assert (await client.post("/services", json=body("b"))).status == 400
    apply(client, allowed_networks="10.0.0.0/8")
    assert (await client.post("/services", json=body("b"))).status == 400
    apply(client, max_services=1)
    assert (await client.post("/services", json=body("b"))).status == 503
    apply(client)
    assert (await client.post("/services", json=body("b"))).status == 201
    apply(client, max_watchers=1, max_connections=7, health_interval=2, health_timeout=1, probe_concurrency=3)
    inside = parts(client)
    assert (inside.hub.limit, inside.connections.limit) == (1, 7)
    assert (inside.prober._interval_s, inside.prober._timeout_s, inside.prober._concurrency) == (2, 1, 3)


@pytest.mark.parametrize("wrong", [{"allowed_networks": "10.0.0.0/99"}, {"admin_token_file": "/nonexistent"}])
async def test_a_fault_changes_nothing(start_registry: StartClient, wrong: dict[str, str]) -> None:
    client = await start_registry()
    with pytest.raises(ConfigurationError):
        apply(client, max_services=1, lowest_port=60000, **wrong)
    assert (await client.post("/services", json=body("a"))).status == 201
    assert (await client.post("/services", json=body("b"))).status == 201


async def test_taking_the_last_token_away_does_not_open_a_network(start_registry: StartClient, tmp_path: Path) -> None:
    client = await start_registry(admin_token_file=str(token(tmp_path / "old", OLD)))
    with pytest.raises(ConfigurationError, match="refusing to listen"):
        apply(client, host="10.0.0.1")
    assert (await client.get("/services")).status == 401


def test_files_of_prefixed_tokens_are_watched() -> None:
    settings = RegistrySettings(read_token_file="a", register_token_file="team-=b,c", admin_token_file="d")
    assert list(files_of(settings)) == [Path("a"), Path("b"), Path("c"), Path("d")]


def test_every_setting_is_applied_or_needs_a_restart() -> None:
    text = (Path(__file__).resolve().parents[2] / "registry" / "reload.py").read_text()
    text += (Path(__file__).resolve().parents[2] / "registry" / "access.py").read_text()
    reloaded = RegistrySettings.model_fields.keys() - needing_restart(RegistrySettings)
    assert [name for name in reloaded if f".{name}" not in text] == []


@contextmanager
def lines_of(log: Path) -> Iterator[Any]:
    """Gives the next log line of an event."""
    with log.open() as file:

        async def until(event: str) -> dict[str, Any]:
            pending = ""
            async with asyncio.timeout(30):
                while True:
                    pending += file.readline()
                    if not pending.endswith("\n"):
                        await asyncio.sleep(0.02)
                        continue
                    line: dict[str, Any] = json.loads(pending)
                    pending = ""
                    if line["event"] == event:
                        return line

        yield until


@pytest.mark.e2e
async def test_a_process_reloads_by_signal_and_by_file_and_loses_no_request(tmp_path: Path) -> None:
    config, secret = tmp_path / "registry.toml", token(tmp_path / "admin.token", OLD)
    config.write_text(f'admin_token_file = "{secret}"\nmax_services = 9\n')
    statuses: list[int] = []
    async with ClientSession() as session:
        with running(tmp_path, "--config", str(config)) as (process, url), lines_of(tmp_path / "registry.log") as until:

            async def keep_asking() -> None:
                while True:
                    async with session.get(f"{url}/health") as answer:
                        statuses.append(answer.status)

            asking = asyncio.ensure_future(keep_asking())
            config.write_text("max_services = true\n")
            assert "'max_services'" in (await until("config.refused"))["reason"]
            config.write_text(f'admin_token_file = "{secret}"\nmax_services = 8\nport = 1\n')
            line = await until("config.reloaded")
            # The flag wins over the file's port; what changed is the limit.
            assert (line["changed"], line["need_restart"], line["files"]) == (["max_services"], [], [str(config)])
            token(secret, NEW)
            assert (await until("config.reloaded"))["files"] == [str(secret)]
            async with session.get(f"{url}/services", headers=bearer(NEW)) as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGHUP)
            assert (await until("config.reloaded"))["changed"] == []
            asking.cancel()
            await asyncio.wait({asking})
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    assert set(statuses) == {200}
