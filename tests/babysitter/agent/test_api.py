"""Every call of the agent, over light babysitters."""

import asyncio
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from babysitter.agent import processes
from tests.babysitter.agent.conftest import (
    WAIT_S,
    Client,
    StartAgent,
    create,
    info,
    manager_of,
    reached,
    wanted,
)
from tests.babysitter.agent.test_pure import CONTRACT

REPLICAS = "/api/v1/replicas"


async def answer_of(client: Client, method: str, path: str, **more: Any) -> tuple[int, Any]:
    async with client.request(method, path, **more) as answer:
        return answer.status, await answer.json()


async def events_of(
    client: Client, replica_id: str, query: str = "", *, logged: Path | None = None
) -> list[tuple[str, Any]]:
    """All events of a stream that ends; the file `logged` is made once a line of a log is among them."""
    async with asyncio.timeout(WAIT_S), client.get(f"{REPLICAS}/{replica_id}/events{query}") as answer:
        assert answer.content_type == "text/event-stream"
        raw = b""
        async for piece in answer.content.iter_any():
            raw += piece
            if logged is not None and b"event: log" in raw:
                logged.touch()
    text = raw.decode()
    blocks = [block.split("\n") for block in text.split("\n\n") if block.startswith("id: ")]
    assert [lines[0] for lines in blocks] == [f"id: {number}" for number in range(1, len(blocks) + 1)]
    return [(lines[1].removeprefix("event: "), json.loads(lines[2].removeprefix("data: "))) for lines in blocks]


async def test_create_answers_at_once_in_the_contracts_shape(client: Client) -> None:
    status, content = await answer_of(client, "POST", REPLICAS, json=wanted(wait_for_ready=True))
    assert status == 201
    assert content == {
        "replica_id": content["replica_id"],
        "status": "pending",
        "message": f"Replica {content['replica_id']} created successfully",
        "base_url": None,
        "request_id": content["request_id"],
    }
    assert len(content["replica_id"]) == 12
    found = await reached(client, content["replica_id"], "ready")
    assert set(CONTRACT.split()) <= found.keys()
    assert found["display_status"] == "Active"
    assert found["endpoint"] == f"http://node:{found['port']}"


async def test_create_leaves_the_contracts_files(client: Client, tmp_path: Path) -> None:
    replica_id = await create(client)
    await reached(client, replica_id, "ready")
    root = tmp_path / "root"
    request = json.loads((root / replica_id / "request.json").read_text())
    assert (request["model_name"], len(request["request_id"])) == ("m", 32)
    assert json.loads((root / "state" / f"{replica_id}.json").read_text())["status"] == "ready"
    pid = int((root / "state" / f"{replica_id}.pid").read_text())
    assert os.getsid(pid) == pid, "detached: a session of its own"
    assert (root / replica_id / "worker_stderr.log").read_text() == "the light one runs\n"
    for path in (root, root / replica_id, root / "state"):
        assert path.stat().st_mode & 0o077 == 0


async def test_list_and_its_filters(client: Client) -> None:
    first = await create(client)
    second = await create(client, model_name="other", server_mode="replica_mock")
    for replica_id in (first, second):
        await reached(client, replica_id, "ready")
    for query, found in (
        ("", {first, second}),
        ("?model_name=other", {second}),
        ("?server_mode=replica", {first}),
        ("?status=ready&model_name=m", {first}),
        ("?status=failed", set()),
    ):
        status, content = await answer_of(client, "GET", REPLICAS + query)
        assert status == 200
        assert {it["replica_id"] for it in content["replicas"]} == found
        assert content["total"] == len(found)


async def test_get_has_the_status_beside_the_info(client: Client) -> None:
    replica_id = await create(client)
    await reached(client, replica_id, "ready")
    status, content = await answer_of(client, "GET", f"{REPLICAS}/{replica_id}")
    assert status == 200
    assert content.keys() == {"replica_id", "status", "info"}
    assert content["status"] == content["info"]["status"] == "ready"


async def test_health_counts(client: Client) -> None:
    await reached(client, await create(client), "ready")
    await reached(client, await create(client, full_config={"light": {"status": "failed"}}), "failed")
    for path in ("/health", "/api/v1/health"):
        status, content = await answer_of(client, "GET", path)
        assert status == 200
        assert (content["status"], content["replicas_total"], content["replicas_ready"]) == ("healthy", 2, 1)
        assert datetime.fromisoformat(content["timestamp"]).tzinfo is not None


async def test_every_answer_is_compact_W35(client: Client) -> None:
    replica_id = await create(client)
    for path in (REPLICAS, f"{REPLICAS}/{replica_id}", "/health", "/nowhere"):
        async with client.get(path) as answer:
            raw = await answer.read()
        assert b'": ' not in raw
        assert b', "' not in raw


async def test_stop_with_a_force_that_is_null_is_a_plain_stop_W21(client: Client) -> None:
    status, content = await answer_of(client, "POST", f"{REPLICAS}/{await create(client)}/stop", json={"force": None})
    assert (status, content["status"]) == (200, "stopped")


async def test_delete_stops_removes_and_is_shown_for_a_while_A11(start_agent: StartAgent, tmp_path: Path) -> None:
    client = await start_agent(stopped_retention_s=1.0)
    replica_id = await create(client)
    port = (await reached(client, replica_id, "ready"))["port"]
    status, content = await answer_of(client, "DELETE", f"{REPLICAS}/{replica_id}")
    assert (status, content["replica_id"], content["status"]) == (200, replica_id, "stopped")
    found = await reached(client, replica_id, "stopped")
    assert (found["metadata"]["deleted"], found["endpoint"]) == (True, "NA")
    await reached(client, replica_id, "")
    assert (await answer_of(client, "DELETE", f"{REPLICAS}/{replica_id}"))[0] == 404
    root = tmp_path / "root"
    assert sorted(path.name for path in root.iterdir()) == ["agent.lock", "audit.jsonl", "state"]
    assert list((root / "state").iterdir()) == []
    assert processes.scan(root) == {}
    assert port not in {controller.record.port for controller in manager_of(client).controllers()}


async def test_a_deployments_replica_is_gone_whole_once_it_is_deleted(start_agent: StartAgent, tmp_path: Path) -> None:
    """Else those that were evicted would be shown as stopped for minutes, beside the one that runs."""
    client = await start_agent(stopped_retention_s=300.0)
    replica_id = await create(client, metadata={"deployment": "chat", "revision": 1})
    await reached(client, replica_id, "ready")
    assert (await answer_of(client, "DELETE", f"{REPLICAS}/{replica_id}"))[0] == 200
    await reached(client, replica_id, "")
    assert list((tmp_path / "root" / "state").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["agent.lock", "audit.jsonl", "state"]


async def test_stop_keeps_the_directory_until_a_delete(client: Client, tmp_path: Path) -> None:
    replica_id = await create(client)
    await reached(client, replica_id, "ready")
    status, content = await answer_of(client, "POST", f"{REPLICAS}/{replica_id}/stop", json={"force": False})
    assert (status, content["status"]) == (200, "stopped")
    await reached(client, replica_id, "stopped")
    assert (await answer_of(client, "POST", f"{REPLICAS}/{replica_id}/stop"))[0] == 200
    assert (tmp_path / "root" / replica_id / "request.json").exists()
    assert (await answer_of(client, "DELETE", f"{REPLICAS}/{replica_id}"))[0] == 200
    async with asyncio.timeout(WAIT_S):
        while (tmp_path / "root" / replica_id).exists():
            await asyncio.sleep(0.02)
    assert (await info(client, replica_id))["metadata"]["deleted"] is True


async def test_delete_at_once_after_create_leaves_nothing_E2(client: Client, tmp_path: Path) -> None:
    replica_ids = [await create(client) for _ in range(8)]
    for number, replica_id in enumerate(replica_ids):
        await asyncio.sleep(0.02 * number)
        assert (await answer_of(client, "DELETE", f"{REPLICAS}/{replica_id}"))[0] == 200
    for replica_id in replica_ids:
        await reached(client, replica_id, "stopped")
    async with asyncio.timeout(WAIT_S):
        while any((tmp_path / "root" / replica_id).exists() for replica_id in replica_ids):
            await asyncio.sleep(0.02)
    assert processes.scan(tmp_path / "root") == {}


async def test_a_replica_that_does_not_stop_is_stopped_by_force(client: Client) -> None:
    replica_id = await create(client, full_config={"light": {"deaf": True}})
    await reached(client, replica_id, "ready")
    await answer_of(client, "POST", f"{REPLICAS}/{replica_id}/stop")
    assert (await reached(client, replica_id, "stopping"))["status"] == "stopping"
    await answer_of(client, "POST", f"{REPLICAS}/{replica_id}/stop", json={"force": True})
    await reached(client, replica_id, "stopped")


async def test_unknown_replicas_are_404(client: Client) -> None:
    for method, path in (
        ("GET", ""), ("DELETE", ""), ("POST", "/stop"), ("POST", "/health"), ("POST", "/retry"), ("GET", "/timeline"),
        ("GET", "/logs"), ("GET", "/events"),
    ):  # fmt: skip
        status, content = await answer_of(client, method, f"{REPLICAS}/abc123abc123{path}")
        assert status == 404
        assert "abc123abc123" in content["error"]
        assert content["detail"] == content["error"]


async def test_health_asks_the_server_now(client: Client) -> None:
    replica_id = await create(client)
    await reached(client, replica_id, "ready")
    status, content = await answer_of(client, "POST", f"{REPLICAS}/{replica_id}/health")
    assert status == 200
    assert content.keys() == {"replica_id", "healthy", "base_url", "message"}
    assert content["healthy"] is True
    await answer_of(client, "POST", f"{REPLICAS}/{replica_id}/stop")
    await reached(client, replica_id, "stopped")
    status, content = await answer_of(client, "POST", f"{REPLICAS}/{replica_id}/health")
    assert (status, content["healthy"], content["base_url"]) == (200, False, None)


async def test_retry_begins_a_failed_replica_again_A6(client: Client) -> None:
    replica_id = await create(client, full_config={"light": {"status": "failed", "error": "it broke"}})
    assert (await reached(client, replica_id, "failed"))["error_message"] == "it broke"
    assert (await answer_of(client, "POST", f"{REPLICAS}/{replica_id}/retry"))[0] == 202
    await reached(client, replica_id, "ready")
    status, content = await answer_of(client, "POST", f"{REPLICAS}/{replica_id}/retry")
    assert (status, content["error"]) == (409, f"only a failed replica is retried; {replica_id} is ready")


async def test_a_babysitter_that_refuses_its_settings_is_a_failed_replica_A7(client: Client) -> None:
    replica_id = await create(client, full_config={"light": {"exit": 78}})
    found = await reached(client, replica_id, "failed")
    assert found["error_message"] == "its babysitter cannot start: told to end"
    assert (await answer_of(client, "POST", f"{REPLICAS}/{replica_id}/retry"))[0] == 202
    await reached(client, replica_id, "failed")
    assert (await answer_of(client, "DELETE", f"{REPLICAS}/{replica_id}"))[0] == 200
    await reached(client, replica_id, "stopped")


async def test_a_babysitter_that_dies_is_started_again_B1(client: Client, tmp_path: Path) -> None:
    replica_id = await create(client)
    before = (await reached(client, replica_id, "ready"))["replica_pid"]
    os.kill(before, 9)
    async with asyncio.timeout(WAIT_S):
        while (await info(client, replica_id))["replica_pid"] == before:
            await asyncio.sleep(0.03)
    await reached(client, replica_id, "ready")
    assert len(processes.scan(tmp_path / "root")[replica_id]) == 1


async def test_the_same_request_50_times_at_once_is_one_replica_E1(client: Client) -> None:
    answers = await asyncio.gather(
        *(answer_of(client, "POST", REPLICAS, json=wanted(request_id="r1")) for _ in range(50))
    )
    assert sorted(status for status, _ in answers) == [200] * 49 + [201]
    assert len({content["replica_id"] for _, content in answers}) == 1
    assert (await answer_of(client, "GET", REPLICAS))[1]["total"] == 1


async def test_another_request_of_the_same_id_is_409_E1(client: Client) -> None:
    replica_id = await create(client, request_id="r1")
    status, content = await answer_of(client, "POST", REPLICAS, json=wanted(request_id="r1", model_name="other"))
    assert (status, content["field"], content["replica_id"]) == (409, "request_id", replica_id)


@pytest.mark.timeout(300)  # 200 processes
async def test_200_creates_at_once_share_no_port_and_lose_no_replica_E8(start_agent: StartAgent) -> None:
    client = await start_agent(starts_at_once=8)
    replica_ids = await asyncio.gather(*(create(client) for _ in range(200)))
    assert len(set(replica_ids)) == 200
    infos: list[dict[str, Any]] = []
    async with asyncio.timeout(WAIT_S):
        while len(infos) < 200:  # each that is ready has bound its ports
            infos = (await answer_of(client, "GET", f"{REPLICAS}?status=ready"))[1]["replicas"]
            await asyncio.sleep(0.1)
    assert {it["replica_id"] for it in infos} == set(replica_ids)
    taken = [port for it in infos for port in (it["port"], it["port"] + 1)]
    assert len(set(taken)) == 400
    assert all(not 32_768 <= port <= 60_999 for port in taken)


async def test_a_node_without_ports_or_room_says_so(start_agent: StartAgent) -> None:
    client = await start_agent(max_replicas=2)
    settings = manager_of(client).settings
    await create(client)
    await create(client)
    status, content = await answer_of(client, "POST", REPLICAS, json=wanted())
    assert (status, content["error"]) == (503, "the node is full: max_replicas is 2")
    object.__setattr__(settings, "max_replicas", 3)
    object.__setattr__(settings, "last_port", settings.first_port + 3)
    status, content = await answer_of(client, "POST", REPLICAS, json=wanted())
    assert status == 507
    assert "first_port" in content["error"]


async def test_calls_need_the_token_but_for_the_health(start_agent: StartAgent) -> None:
    token = "t" * 40
    client = await start_agent(token=token)
    assert (await answer_of(client, "GET", "/health"))[0] == 200
    good = ("Authorization", f"Bearer {token}")
    for headers in ([], [("Authorization", "Bearer x")], [("Authorization", f"Bearer {token}x")], [good, good]):
        for method, path in (("GET", REPLICAS), ("POST", REPLICAS), ("GET", "/openapi.json")):
            assert (await answer_of(client, method, path, headers=headers))[0] == 401
    assert (await answer_of(client, "GET", REPLICAS, headers=[good]))[0] == 200


async def test_events_lead_from_a_snapshot_to_ready(client: Client, tmp_path: Path) -> None:
    logged = tmp_path / "logged"
    replica_id = await create(client, full_config={"light": {"after": str(logged)}})
    events = await events_of(client, replica_id, "?until=ready&logs=worker&tail=10", logged=logged)
    names = [name for name, _ in events]
    assert (names[0], names[-1]) == ("snapshot", "end")
    assert set(CONTRACT.split()) <= events[0][1].keys()
    assert events[-1][1] == {"replica_id": replica_id, "status": "ready", "reason": "the replica is ready"}
    assert events[0][1]["status"] != "ready"
    last = [data for name, data in events if name == "status"][-1]
    assert (last["status"], last["display_status"]) == ("ready", "Active")
    assert [data["to"] for name, data in events if name == "transition"] == ["ready"]
    assert ("log", {"stream": "worker", "line": "the light one runs"}) in events


async def test_events_go_on_until_the_replica_is_stopped(client: Client) -> None:
    replica_id = await create(client)
    await reached(client, replica_id, "ready")
    stream = asyncio.ensure_future(events_of(client, replica_id))
    await asyncio.sleep(0.1)
    await answer_of(client, "DELETE", f"{REPLICAS}/{replica_id}")
    events = await stream
    assert events[-1][0] == "end"
    assert events[-1][1]["status"] == "stopped"
    assert "stopped" in [data["status"] for name, data in events if name == "status"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("events?until=stopped", "until"),
        ("events?logs=stdout,secret", "logs"),
        ("events?tail=x", "tail"),
        ("events?tail=-1", "tail"),
        ("logs?stream=../../etc/passwd", "stream"),
        ("logs?tail=99999999", "tail"),
        ("logs?tail=%EF%BC%91", "tail"),
    ],
)
async def test_a_bad_query_of_a_stream_is_422(client: Client, path: str, field: str) -> None:
    replica_id = await create(client)
    status, content = await answer_of(client, "GET", f"{REPLICAS}/{replica_id}/{path}")
    assert (status, content["field"]) == (422, field)


async def test_logs_give_the_end_of_a_file_and_what_comes_after(client: Client, tmp_path: Path) -> None:
    replica_id = await create(client)
    await reached(client, replica_id, "ready")
    path = f"{REPLICAS}/{replica_id}/logs"
    for query, text in (("", "one\ntwo\nthree\n"), ("?tail=1", "three\n"), ("?tail=0", ""), ("?stream=stderr", "")):
        async with client.get(path + query) as answer:
            assert await answer.text() == text
    async with client.get(f"{path}?tail=2&follow=1") as answer:
        assert await answer.content.readexactly(len("two\nthree\n")) == b"two\nthree\n"
        with (tmp_path / "root" / replica_id / "replica_stdout.log").open("a") as file:
            file.write("four\n")
        assert await answer.content.readexactly(len("four\n")) == b"four\n"
        (tmp_path / "root" / replica_id / "replica_stdout.log").write_text("a\n")
        assert await answer.content.readexactly(len("a\n")) == b"a\n"


async def test_logs_right_after_a_rotation_give_the_lines_before_it_W32(client: Client, tmp_path: Path) -> None:
    replica_id = await create(client)
    await reached(client, replica_id, "ready")
    log = tmp_path / "root" / replica_id / "replica_stdout.log"
    log.with_name(f"{log.name}.1").write_text("older\nold\n")
    path = f"{REPLICAS}/{replica_id}/logs"
    for query, text in (("?tail=2", "two\nthree\n"), ("?tail=4", "old\none\ntwo\nthree\n")):
        assert await (await client.get(path + query)).text() == text
    log.write_text("")
    assert await (await client.get(f"{path}?tail=1")).text() == "old\n"
    assert await (await client.get(f"{path}?tail=0")).text() == ""


async def test_timeline_tells_every_move(client: Client) -> None:
    replica_id = await create(client)
    await reached(client, replica_id, "ready")
    status, content = await answer_of(client, "GET", f"{REPLICAS}/{replica_id}/timeline")
    assert status == 200
    assert content.keys() == {"replica_id", "status", "transitions", "stages", "jobs"}
    assert [move["to"] for move in content["transitions"]] == ["ready"]


async def test_metrics_count_the_nodes_replicas(client: Client) -> None:
    replica_id = await create(client)
    await reached(client, replica_id, "ready")
    async with client.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    assert 'svc_agent_replicas{status="ready"} 1.0' in lines
    assert "svc_agent_replicas_live 1.0" in lines
    assert "svc_agent_replicas_without_babysitter 0.0" in lines
