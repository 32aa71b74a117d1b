import subprocess
import sys

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from common.discovery.record import record_from_wire
from common.discovery.registry_client import RegistryUnavailable
from ctl.__main__ import as_table, fetch

RECORD = {"name": "a", "host": "h", "port": 1, "url": "http://h:1", "metadata": {"type": "openai-api", "models": ["m"]}}


async def test_fetch_lists_the_records_of_the_first_registry_that_answers() -> None:
    async def services(_request: web.Request) -> web.Response:
        return web.json_response({"services": [RECORD]})

    app = web.Application()
    app.router.add_get("/services", services)
    async with TestServer(app) as server:
        assert [record.name for record in await fetch(["http://127.0.0.1:1", str(server.make_url(""))])] == ["a"]


async def test_fetch_tells_when_none_answers() -> None:
    with pytest.raises(RegistryUnavailable):
        await fetch(["http://127.0.0.1:1"])


def test_the_table_has_a_row_for_each_record_by_name() -> None:
    table = as_table([record_from_wire({**RECORD, "name": name, "metadata": {}}) for name in ("b", "a")])
    assert list(table.columns[0].cells) == ["a", "b"]


def test_an_unreachable_registry_is_one_line_and_exit_1() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ctl", "--registry-url", "http://127.0.0.1:1", "services"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("svcctl: error: http://127.0.0.1:1: ")
    assert len(done.stderr.splitlines()) == 1
