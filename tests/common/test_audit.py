"""The audit's file: what a line says, how the file stays small, and that a disk which takes nothing costs no call."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestClient

from common.http import audit as audits
from common.http.audit import AuditLog, Wanted, audited, read
from common.http.errors import ApiError, json_errors
from tests.audits import lines

Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def client(tmp_path: Path, aiohttp_client: Any) -> Client:
    async def done(_request: web.Request) -> web.Response:
        return web.Response(status=201)

    async def refused(_request: web.Request) -> web.Response:
        raise ApiError(401, "a token is needed")

    log = AuditLog(tmp_path / "audit.jsonl", "sample")
    role = lambda request: request.headers.get("Role")  # noqa: E731
    app = web.Application(middlewares=[audited(lambda _: log, {("POST", "/beat"): "often"}, role), json_errors])
    app.router.add_route("*", "/things/{name}", done)
    app.router.add_post("/beat", done)
    app.router.add_post("/refused", refused)
    made: Client = await aiohttp_client(app)
    return made


async def change(client: Client, path: str = "/things/a", **headers: str) -> int:
    async with client.post(path, headers=headers, json={"prompt": "secret words"}) as answer:
        return answer.status


async def test_a_line_says_who_from_where_what_and_what_came_of_it_and_nothing_secret(
    client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "audit.jsonl"
    headers = {"Role": "token admin", "X-Request-Id": "r-1", "Authorization": "Bearer sk-secret"}
    assert await change(client, "/things/a?token=secret", **headers) == 201
    [line] = lines(file)
    assert {name: line[name] for name in line if name != "time"} == {
        "service": "sample",
        "who": "token admin",
        "remote": "127.0.0.1",
        "method": "POST",
        "path": "/things/a",
        "status": 201,
        "request_id": "r-1",
    }
    assert "secret" not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


async def test_a_caller_of_this_machine_without_a_token_is_its_user(client: Client, tmp_path: Path) -> None:
    await change(client)
    assert lines(tmp_path / "audit.jsonl")[0]["who"] == f"user {os.getuid()}"


async def test_questions_beats_unknown_paths_and_strangers_leave_no_line(client: Client, tmp_path: Path) -> None:
    async with client.get("/things/a"):
        pass
    statuses = [await change(client, path) for path in ("/beat", "/nowhere", "/refused")]
    assert statuses == [201, 404, 401]
    assert lines(tmp_path / "audit.jsonl") == []


async def test_bytes_that_are_no_text_cost_no_call(client: Client, tmp_path: Path) -> None:
    assert client.port is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(b"POST /things/%ff%0a HTTP/1.1\r\nHost: h\r\nX-Request-Id: \xff\r\nContent-Length: 0\r\n\r\n")
    assert b" 201 " in await reader.readline()
    writer.close()
    assert [line["request_id"] for line in lines(tmp_path / "audit.jsonl")] == ["?"]


async def test_a_full_disk_costs_the_line_and_not_the_call(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "audit.jsonl"
    await change(client)
    write = os.write
    monkeypatch.setattr("common.http.audit.os.write", lambda descriptor, data: write(descriptor, data[:7]))
    with structlog.testing.capture_logs() as told:
        assert [await change(client), await change(client)] == [201, 201]
    assert [(line["event"], line["reason"]) for line in told if line["log_level"] == "error"] == [
        ("audit.not_written", "No space left on device")
    ]
    monkeypatch.setattr("common.http.audit.os.write", write)
    await change(client)
    assert len(lines(file)) == 2, "no half line is left"


async def test_a_folder_that_cannot_be_written_costs_the_line_and_not_the_call(client: Client, tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").symlink_to("/etc/passwd")
    assert await change(client) == 201


async def test_files_stay_small_and_the_latest_lines_are_read_over_several(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "FILE_LIMIT_BYTES", 1000)
    for number in range(60):
        await change(client, f"/things/{number}", Role="even" if number % 2 == 0 else "odd")
    files = sorted(tmp_path.glob("audit.jsonl*"))
    assert [file.name for file in files] == ["audit.jsonl", *(f"audit.jsonl.{number}" for number in (1, 2, 3))]
    assert sum(file.stat().st_size for file in files) < 6000
    found = read([tmp_path / "audit.jsonl"], Wanted(limit=12))
    assert [line.path for line in found] == [f"/things/{number}" for number in range(48, 60)]
    odd = read([tmp_path / "audit.jsonl"], Wanted(who="odd", limit=3))
    assert [line.path for line in odd] == ["/things/55", "/things/57", "/things/59"]
    assert read([tmp_path / "audit.jsonl", tmp_path / "nothing"], Wanted(since=10**10)) == []


def test_a_damaged_line_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    good = (
        b'{"time":"2026-01-01T00:00:00.000Z","service":"s","who":"w","remote":"","method":"POST","path":"/","status":1}'
    )
    file.write_bytes(b'{"time":"20\n' + good + b"\n\xff\xfe\n")
    assert [line.who for line in read([file], Wanted())] == ["w"]
