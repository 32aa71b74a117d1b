"""The proxies of docs/guides/proxy.md, set up as the page says: streams come as they are sent, the rest stays inside."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import connect
from websockets.typing import Origin

from tests.docs.pages import blocks, page
from tests.ports import free_port, is_free
from tests.router.fakes import Call, Plane
from tests.router.realtime import echo, library_server

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
CHUNK = b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'


def shown(kind: str, backend: int, **own: str) -> str:
    """The page's configuration, with this test's addresses."""
    (block,) = blocks(page("guides/proxy.md"), kind)
    text = block.text.replace("127.0.0.1:8000", f"127.0.0.1:{backend}")
    for theirs, ours in own.items():
        assert theirs in text
        text = text.replace(theirs, ours)
    return text


def program(name: str, folder: Path) -> str:
    """The system's, else Debian's package unpacked into the folder."""
    if found := shutil.which(name):
        return found
    subprocess.run(["apt-get", "download", name], cwd=folder, check=True)
    subprocess.run(["sh", "-c", "for deb in *.deb; do dpkg-deb -x $deb .; done"], cwd=folder, check=True)
    return str(next(path for path in (folder / "usr/bin" / name, folder / "usr/sbin" / name) if path.exists()))


@asynccontextmanager
async def set_up(name: str, plane: Plane, tmp_path: Path) -> AsyncIterator[int]:
    """The proxy, listening on the port that this gives."""
    port, config = free_port(), tmp_path / name
    if name == "caddy":
        site = shown(name, plane.port, **{"https://llm.example.org": f"http://127.0.0.1:{port}"})
        config.write_text("{\n\tadmin off\n}\n" + site)
        words = ["run", "--adapter", "caddyfile", "--config", str(config)]
    elif name == "haproxy":
        config.write_text(shown(name, plane.port, **{":443 ssl crt /etc/haproxy/llm.pem": f"127.0.0.1:{port}"}))
        words = ["-db", "-f", str(config)]
    else:
        paths = "".join(f"{kind}_temp_path {tmp_path}; " for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
        config.write_text(
            f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{ }}\n"
            f"http {{ access_log off; client_body_temp_path {tmp_path}; {paths}\n"
            f"server {{ listen 127.0.0.1:{port};\n{shown(name, plane.port)}}} }}\n"
        )
        words = ["-c", str(config)]
    proxy = await asyncio.create_subprocess_exec(await asyncio.to_thread(program, name, tmp_path), *words)
    try:
        async with asyncio.timeout(30):
            while is_free(port):
                await asyncio.sleep(0.05)
        yield port
    finally:
        proxy.terminate()
        await proxy.wait()


@pytest.mark.world
@pytest.mark.parametrize("name", ["caddy", "haproxy", "nginx"])
async def test_a_proxy_of_the_guide_passes_streams_at_once_and_nothing_inward_W12(
    name: str, plane: Plane, tmp_path: Path
) -> None:
    seen = asyncio.Event()

    async def stream(call: Call) -> None:
        await call.send(HEAD + CHUNK)
        await asyncio.wait_for(seen.wait(), 20)  # nothing more before the client has this
        await call.send(CHUNK + b"data: [DONE]\n\n")
        call.close()

    plane.route(await plane.add(stream))
    async with set_up(name, plane, tmp_path) as port:
        url = f"http://127.0.0.1:{port}"
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=30) as client:
            said = []
            answer = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hello"}], stream=True
            )
            async for part in answer:
                said.append(part.choices[0].delta.content)
                seen.set()
        assert said == ["a", "a"]
        async with aiohttp.ClientSession() as session:
            for inward in ("/services", "/admin/explain", "/api/v1/replicas"):
                async with session.get(url + inward) as refused:
                    assert refused.status == 404, inward
                    assert "unknown_path" not in await refused.text(), "the proxy's own 404"


@pytest.mark.world
@pytest.mark.parametrize("name", ["caddy", "haproxy", "nginx"])
async def test_a_proxy_of_the_guide_passes_websockets_W62(name: str, plane: Plane, tmp_path: Path) -> None:
    async with library_server(echo) as replica, set_up(name, plane, tmp_path) as port:
        plane.route(replica)
        url = f"ws://127.0.0.1:{port}/v1/realtime?model=m"
        async with connect(
            url, proxy=None, origin=Origin(f"http://127.0.0.1:{port}")
        ) as client:  # a page of the proxy's name
            for message in ("hello", "x" * 300_000):
                await client.send(message)
                assert await client.recv() == message
            plane.engine.abort_all()
            await asyncio.wait_for(client.wait_closed(), 10)
            assert client.close_code == 1012
