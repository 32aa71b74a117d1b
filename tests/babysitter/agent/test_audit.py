"""The agent's audit: its own calls, and those that babysitters of its replicas wrote down."""

from pathlib import Path

from babysitter.agent.routes import NO_CHANGE, ROUTES
from common.http.audit import AUDIT_FILE
from tests.audits import check_table, lines
from tests.babysitter.agent.conftest import Client, StartAgent

TOKEN = "t" * 40


async def test_every_call_that_changes_something_leaves_a_line(start_agent: StartAgent, tmp_path: Path) -> None:
    client = await start_agent(TOKEN)
    path = tmp_path / "root" / AUDIT_FILE
    await check_table(client, path, ROUTES, NO_CHANGE, Authorization=f"Bearer {TOKEN}")
    assert {line["who"] for line in lines(path)} == {"token"}
    assert {line["service"] for line in lines(path)} == {"agent n1"}


async def test_lines_of_babysitters_are_told_beside_its_own(client: Client, tmp_path: Path) -> None:
    line = '{"time":"2020-01-01T00:00:00.000Z","service":"babysitter r","who":"token","remote":"","method":"POST"'
    folder = tmp_path / "root" / "aaaabbbbcccc"
    folder.mkdir()
    (folder / AUDIT_FILE).write_text(f'{line},"path":"/stop","status":202}}\n')
    async with client.delete("/api/v1/replicas/nothing00000"):
        pass
    async with client.get("/api/v1/audit") as answer:
        found = [(one["service"], one["path"]) for one in (await answer.json())["lines"]]
    assert found == [("babysitter r", "/stop"), ("agent n1", "/api/v1/replicas/nothing00000")]
    async with client.get("/api/v1/audit?limit=0") as answer:
        assert answer.status == 400
