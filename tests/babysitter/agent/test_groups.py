"""A member of a group at its agent: reserved by the create call, begun by the list of all, and never by itself."""

from typing import Any

import pytest

from babysitter.agent import controller
from tests.babysitter.agent.conftest import Client, StartAgent, info, manager_of, reached
from tests.babysitter.agent.test_templates import wanted

OTHER = {"rank": 1, "node": "n2", "replica_id": "abcabcabcabc", "host": "10.0.0.2", "port": 3000, "rendezvous_port": 0}


async def reserved(client: Client, rank: int = 0, **changes: Any) -> dict[str, Any]:
    body = wanted("mock-group", request_id=f"r{rank}", group={"rank": rank, "size": 2}, **changes)
    async with client.post("/api/v1/replicas", json=body) as answer:
        assert answer.status in (200, 201)
        return dict(await answer.json())


async def told(client: Client, replica_id: str, members: list[Any]) -> tuple[int, str]:
    async with client.post(f"/api/v1/replicas/{replica_id}/members", json={"members": members}) as answer:
        return answer.status, str((await answer.json()).get("error", ""))


async def test_a_member_is_reserved_with_ports_of_its_own_and_begins_when_all_are_known(client: Client) -> None:
    made = await reserved(client)
    own, replica_id = made["member"], made["replica_id"]
    assert (own["rank"], own["node"], own["replica_id"], own["host"]) == (0, "n1", replica_id, "127.0.0.1")
    second = (await reserved(client, 1))["member"]
    ports = [own["port"], own["port"] + 1, own["rendezvous_port"], second["port"], second["port"] + 1]
    assert len({*ports}) == 5
    assert second["rendezvous_port"] == 0
    assert (await reserved(client))["member"] == own, "a repeat says the same"
    directory = manager_of(client).store.directory(replica_id)
    assert not (directory / "backend.json").exists()
    assert not manager_of(client).controller(replica_id).has_babysitter
    assert (await told(client, replica_id, [own, OTHER]))[0] == 200
    assert (await told(client, replica_id, [own, OTHER]))[0] == 200, "a repeat changes nothing"
    assert (await told(client, replica_id, [own, {**OTHER, "port": 3002}]))[0] == 409
    assert '"max_restarts": 0' in (directory / "backend.json").read_text()
    await reached(client, replica_id, "ready")


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([], "members"),
        (["own"], "members"),
        (["own", "own"], "the ranks 0 to 1"),
        ([{**OTHER, "rank": 0}, "own"], "the ranks 0 to 1"),
        ([{**OTHER, "rank": 0}, OTHER], "not where this member is"),
        (["own", {**OTHER, "host": "a b"}], "is no host"),
        (["own", {**OTHER, "host": "x; rm"}], "is no host"),
        (["own", {**OTHER, "port": 0}], "port"),
        (["own", {**OTHER, "replica_id": "../../../etc"}], "replica_id"),
    ],
)
async def test_a_list_that_is_not_its_groups_begins_nothing(client: Client, members: list[Any], text: str) -> None:
    made = await reserved(client)
    own = made["member"]
    status, error = await told(client, made["replica_id"], [own if one == "own" else one for one in members])
    assert status == 422
    assert text in error
    assert (await info(client, made["replica_id"]))["status"] == "pending"


async def test_a_group_that_never_completes_fails_with_that_reason_and_is_removed_like_any_other(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "BEGUN_WITHIN_S", 0.1)
    made = await reserved(client)
    await reached(client, made["replica_id"], "failed")
    assert "not complete within" in (await info(client, made["replica_id"]))["error_message"]
    assert (await told(client, made["replica_id"], [made["member"], OTHER]))[0] == 409
    async with client.delete(f"/api/v1/replicas/{made['replica_id']}") as answer:
        assert answer.status == 200
    await reached(client, made["replica_id"], "stopped")


async def test_a_groups_template_makes_no_single_replica_and_no_other_template_a_group(start_agent: StartAgent) -> None:
    client = await start_agent()
    for body in (wanted("mock-group"), wanted("mock", group={"rank": 0, "size": 2})):
        async with client.post("/api/v1/replicas", json=body) as answer:
            assert (answer.status, (await answer.json())["field"]) == (422, "group")
    async with client.post("/api/v1/replicas", json=wanted("mock")) as answer:
        single = await answer.json()
    assert "member" not in single
    assert (await told(client, single["replica_id"], [OTHER, {**OTHER, "rank": 1}]))[0] == 409
