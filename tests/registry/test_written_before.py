"""A registry of this version on the database of the one before `common/wire` (commit 2cd04d9), which wrote what lies beside.

`written_before/shown.json` is what that registry showed of it before it ended.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from registry.store.sqlite import SqliteStore
from tests.registry.conftest import Client, StartClient, ours

BEFORE = Path(__file__).parent / "written_before"
SHOWN = json.loads((BEFORE / "shown.json").read_text())
PASSING = ("updated_at", "running", "waiting")
"""Members of a report that no version writes down."""


@pytest.fixture
async def client(start_registry: StartClient, tmp_path: Path) -> Client:
    database = tmp_path / "registry.sqlite"
    shutil.copy(BEFORE / "registry.sqlite", database)
    return await start_registry(SqliteStore(database), health_interval=3600)


async def get(client: Client, path: str) -> Any:
    async with client.get(path) as answer:
        assert answer.status == 200
        return await answer.json()


def lasting(service: dict[str, Any]) -> dict[str, Any]:
    kept = {name: member for name, member in service.items() if name != "last_heartbeat"}
    metadata = dict(kept["metadata"])
    if "replica" in metadata:
        metadata["replica"] = {name: it for name, it in metadata["replica"].items() if name not in PASSING}
    return {**kept, "metadata": metadata}


async def test_every_record_is_shown_as_it_was(client: Client) -> None:
    services = {service["name"]: lasting(service) for service in (await get(client, "/services"))["services"]}
    assert services == {service["name"]: lasting(service) for service in SHOWN["services"]}
    assert {service["draining"] for service in services.values()} == {True, False}


async def test_every_replica_is_shown_as_it_was(client: Client) -> None:
    replicas = {info["replica_id"]: info for info in (await get(client, "/api/v1/replicas"))["replicas"]}
    before = {info["replica_id"]: info for info in SHOWN["replicas"]}
    assert replicas.keys() == before.keys()
    for replica_id, info in before.items():
        members = {name: member for name, member in info.items() if name not in PASSING}
        assert {name: replicas[replica_id][name] for name in members} == members
    assert (await get(client, "/api/v1/health"))["replicas_ready"] == 1


async def test_owners_and_generations_go_on(client: Client) -> None:
    own = ours("replica-a", instance_id="i-a", incarnation=3, port=9101, url="http://127.0.0.1:9101")
    async with client.post("/services", json=own) as answer:
        assert answer.status == 200  # the same life of the same instance
    async with client.post("/services", json={**own, "instance_id": "another"}) as answer:
        assert answer.status == 409
    async with client.post("/services", json=ours("gone", instance_id="i-g", incarnation=5)) as answer:
        assert (await answer.json())["service"]["generation"] == 3  # it had two before it was deregistered
