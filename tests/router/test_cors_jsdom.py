"""A page in jsdom, which keeps the browser's rules: it reads answers, errors and streams of a router that lists its origin."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, event, plain

pytestmark = [pytest.mark.world, pytest.mark.timeout(300)]

PAGE = """
const { JSDOM, VirtualConsole } = require("jsdom");
const [, , page, url] = process.argv;
const { window } = new JSDOM("", { url: page, virtualConsole: new VirtualConsole() });
const ask = (body) => new Promise((resolve) => {
  const request = new window.XMLHttpRequest();
  request.open("POST", url);
  request.setRequestHeader("Authorization", "Bearer k");
  request.setRequestHeader("Content-Type", "application/json");
  request.onloadend = () => resolve([request.status, request.responseText, request.getResponseHeader("x-request-id") !== null]);
  request.send(body);
});
(async () => {
  const told = [];
  for (const body of ['{"model":"m"}', '{"model":"m","stream":true}', '{"model":"typo"}']) told.push(await ask(body));
  console.log(JSON.stringify(told));
})();
"""


@pytest.fixture(scope="module")
def jsdom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jsdom")
    npm = shutil.which("npm")
    assert npm is not None, "npm is needed: apt-get install npm"
    subprocess.run([npm, "install", "--no-audit", "--no-fund", "jsdom@26"], cwd=folder, check=True, capture_output=True)
    (folder / "page.js").write_text(PAGE)
    return folder


async def told(jsdom: Path, page: str, port: int) -> Any:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    node = await asyncio.create_subprocess_exec(
        "node", "page.js", page, url, cwd=jsdom, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(node.communicate(), 60)
    assert node.returncode == 0, errors.decode()
    return json.loads(output)


async def test_page_reads_answers_streams_and_errors_only_where_it_is_listed_W10(
    planes: MakePlane, jsdom: Path
) -> None:
    async def answers(call: Call) -> None:
        await call.send(SSE_HEAD + event("a") + DONE if b'"stream":true' in call.body else plain(b'{"ok":1}'))

    plane = await planes(cors_origins=frozenset({b"https://app.example"}))
    plane.route(await plane.add(answers))
    answer, stream, error = await told(jsdom, "https://app.example/chat", plane.port)
    assert answer == [200, '{"ok":1}', True]
    assert stream[0] == 200
    assert stream[1].endswith("data: [DONE]\n\n")
    assert (error[0], json.loads(error[1])["error"]["code"]) == (503, "model_not_found")
    assert await told(jsdom, "https://evil.example/", plane.port) == [[0, "", False]] * 3
