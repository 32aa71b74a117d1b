"""API keys at the registry: what each call answers, what is stored, and how routers hear of a change."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from registry.keys import book
from registry.store.memory import MemoryStore
from registry.store.sqlite import SqliteStore
from tests.registry.conftest import Client, StartClient, parts

TOKEN = "t" * 32


async def made(client: Client, name: str = "team-a", **settings: Any) -> dict[str, Any]:
    answer = await client.post("/api/v1/keys", json={"name": name, **settings})
    assert answer.status == 201, await answer.text()
    content: dict[str, Any] = await answer.json()
    return content


async def test_a_key_is_shown_once_and_only_its_hash_is_kept(start_registry: StartClient) -> None:
    store = MemoryStore()
    client = await start_registry(store)
    key = await made(client, models=["qwen-*"], requests_per_minute=60, expires_at="2027-01-01T00:00:00Z")
    assert key["secret"].startswith("sk-svc-")
    assert len(key["secret"]) == len("sk-svc-") + 43
    shown = await (await client.get("/api/v1/keys/team-a")).json()
    listed = await (await client.get("/api/v1/keys")).json()
    assert listed == {"total": 1, "keys": [shown]}
    assert {name: key[name] for name in shown} == shown
    assert (shown["models"], shown["requests_per_minute"]) == (["qwen-*"], 60)
    stored = (await store.documents.read("keys/"))["keys/team-a"].value
    assert key["secret"].encode() not in stored
    assert hashlib.sha256(key["secret"].encode()).hexdigest().encode() in stored
    assert "sha256" not in json.dumps(listed)


async def test_a_key_is_changed_rotated_and_revoked(start_registry: StartClient) -> None:
    client = await start_registry()
    first = await made(client, tokens_per_day=1000, max_in_flight=4)
    changed = await client.patch("/api/v1/keys/team-a", json={"tokens_per_day": None, "requests_per_minute": 5})
    now = await changed.json()
    assert (now["tokens_per_day"], now["requests_per_minute"], now["max_in_flight"]) == (None, 5, 4)
    second = await (await client.post("/api/v1/keys/team-a/rotate", json={"grace_s": 3600})).json()
    assert second["secret"] != first["secret"]
    pushed = (await (await client.get("/v1/keys")).json())["keys"][0]
    assert pushed["old_sha256"] == hashlib.sha256(first["secret"].encode()).hexdigest()
    third = await (await client.post("/api/v1/keys/team-a/rotate", json={"grace_s": 0})).json()
    assert third["old_secret_until"] is None
    assert (await client.delete("/api/v1/keys/team-a")).status == 200
    assert (await client.get("/api/v1/keys/team-a")).status == 404
    assert (await (await client.get("/v1/keys")).json())["keys"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "a", "requests_per_minute": 0}, "requests_per_minute"),
        ({"name": "a", "tokens_per_minute": -1}, "tokens_per_minute"),
        ({"name": "a", "tokens_per_day": 10**18}, "tokens_per_day"),
        ({"name": "a", "tokens_per_month": "many"}, "tokens_per_month"),
        ({"name": "a", "max_in_flight": True}, "max_in_flight"),
        ({"name": "a", "weight": 0}, "weight"),
        ({"name": "a", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "a", "expires_at": "2027-01-01T00:00:00"}, "expires_at"),
        ({"name": "a b"}, "name"),
        ({"name": "a\n"}, "name"),
    ],
)
async def test_what_is_no_limit_is_refused_with_its_name(client: Client, body: dict[str, Any], field: str) -> None:
    answer = await client.post("/api/v1/keys", json=body)
    assert answer.status == 422
    assert (await answer.json())["field"] == field
    assert (await (await client.get("/api/v1/keys")).json())["total"] == 0


async def test_a_misspelt_limit_is_refused_and_not_passed_over(client: Client) -> None:
    answer = await client.post("/api/v1/keys", json={"name": "a", "request_per_minute": 5})
    assert answer.status == 422
    assert "requests_per_minute" in (await answer.json())["error"]


async def test_a_name_is_one_keys_only_and_an_unknown_one_is_404(client: Client) -> None:
    await made(client)
    assert (await client.post("/api/v1/keys", json={"name": "team-a"})).status == 409
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")):
        answer = await client.request(method, f"/api/v1/keys/nobody{path}", json={})
        assert answer.status == 404, method


async def test_keys_need_an_admin_token_and_routers_a_read_token(start_registry: StartClient, tmp_path: Path) -> None:
    files = {}
    for number, level in enumerate(("read", "register", "admin")):
        files[level] = tmp_path / level
        files[level].write_text(f"{number}" * 32)
        files[level].chmod(0o600)
    client = await start_registry(
        read_token_file=(str(files["read"]),),
        register_token_file=(str(files["register"]),),
        admin_token_file=(str(files["admin"]),),
    )
    for number, level in enumerate(("read", "register")):
        headers = {"Authorization": f"{'Bearer ' + str(number) * 32}"}
        assert (await client.get("/api/v1/keys", headers=headers)).status == 403, level
        assert (await client.post("/api/v1/keys", json={"name": "a"}, headers=headers)).status == 403, level
        assert (await client.get("/v1/keys", headers=headers)).status == 200, level
    assert (await client.get("/v1/keys")).status == 401
    admin = {"Authorization": f"Bearer {'2' * 32}"}
    assert (await client.post("/api/v1/keys", json={"name": "a"}, headers=admin)).status == 201


async def test_who_waits_for_other_keys_hears_of_a_change_at_once(client: Client) -> None:
    version = (await (await client.get("/v1/keys")).json())["version"]
    waiting = asyncio.ensure_future(client.get("/v1/keys", params={"version": version, "wait": "50"}))
    async with asyncio.timeout(20):
        while not parts(client).waiting_for_keys:
            await asyncio.sleep(0.005)
        await made(client)
        told = await (await waiting).json()
    assert [key["name"] for key in told["keys"]] == ["team-a"]
    assert told["version"] != version
    assert parts(client).waiting_for_keys == 0


async def test_a_change_at_another_registry_over_the_store_is_heard_of(
    start_registry: StartClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "LOOK_S", 0.01)
    store = MemoryStore()
    client = await start_registry(store)
    version = (await (await client.get("/v1/keys")).json())["version"]
    waiting = asyncio.ensure_future(client.get("/v1/keys", params={"version": version, "wait": "50"}))
    other = book.KeyBook(store.documents)
    await made(client, "here")
    key = (await other.read())["here"]
    await waiting
    await other.change("there", lambda _: type(key)(**{**_fields(key), "name": "there"}))
    async with asyncio.timeout(20):
        while len((await (await client.get("/v1/keys")).json())["keys"]) < 2:
            await asyncio.sleep(0.01)


def _fields(key: Any) -> dict[str, Any]:
    return {name: getattr(key, name) for name in key.__struct_fields__}


async def test_keys_outlive_the_registry_and_one_that_cannot_be_read_lets_nobody_in(
    start_registry: StartClient, tmp_path: Path
) -> None:
    store = SqliteStore(tmp_path / "registry.sqlite3")
    client = await start_registry(store)
    await made(client)
    await store.documents.write("keys/broken", b"{", version=0)
    await client.close()
    again = await start_registry(SqliteStore(tmp_path / "registry.sqlite3"))
    assert [key["name"] for key in (await (await again.get("/api/v1/keys")).json())["keys"]] == ["team-a"]
    await made(again, "broken")  # the remedy: make it anew
