"""Streams of a replica behind an nginx that compresses and adds trailers."""

import asyncio
import gzip
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.router.peers import Debian
from tests.ports import free_port, is_free
from tests.router.fakes import DONE, SSE_HEAD, Call, Plane, event
from tests.router.test_raw_responses import unchunk
from tests.router.test_streams import blamed

pytestmark = [pytest.mark.world, pytest.mark.timeout(700)]


CONFIG = """\
daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  gzip on; gzip_types text/event-stream application/json; gzip_min_length 1; gzip_proxied any;
  server {{
    listen 127.0.0.1:{port};
    add_trailer X-Checksum abc;
    location / {{ proxy_pass http://127.0.0.1:{backend}; proxy_http_version 1.1; proxy_buffering off; }}
  }}
}}
"""
TEXT = b'data: {"t":"one"}\n\ndata: {"t":"two"}\n\ndata: [DONE]\n\n'


@pytest.fixture
async def behind_nginx(plane: Plane, tmp_path: Path) -> AsyncIterator[Plane]:
    """A replica that streams, reached through an nginx that compresses what may be compressed, and adds a trailer."""

    async def stream(call: Call) -> None:
        for part in (SSE_HEAD, event("one"), event("two"), DONE):
            await call.send(part)
            await asyncio.sleep(0.005)

    replica = await plane.add(stream)
    port, config = free_port(), tmp_path / "nginx.conf"
    config.write_text(CONFIG.format(folder=tmp_path, port=port, backend=replica.port))
    program = await asyncio.to_thread(Debian("nginx", "nginx.conf", ["nginx"], []).prepare, tmp_path, install=True)
    nginx = await asyncio.create_subprocess_exec(program, "-c", str(config), stderr=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(30):
            while is_free(port):
                await asyncio.sleep(0.05)
        plane.route(port)
        yield plane
    finally:
        nginx.terminate()
        await nginx.wait()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/images/generations"])
async def test_streams_behind_an_nginx_that_compresses_arrive_whole_and_blame_nobody_W4_W7(
    behind_nginx: Plane, path: str
) -> None:
    asked = b'{"model":"m","stream":true,"messages":[]}'
    for _ in range(15):
        reply = await behind_nginx.post(asked, path, headers="accept-encoding: gzip\r\n")
        body = unchunk(reply.body)  # a whole chunked body, nothing behind its end
        coding = reply.header("content-encoding")
        assert coding == (None if path == "/v1/chat/completions" else "gzip")
        assert (gzip.decompress(body) if coding else body) == TEXT
        assert b"X-Checksum" not in reply.raw
    assert not blamed(behind_nginx)


async def test_this_nginx_compresses_streams_and_sends_trailers_W4_W7(behind_nginx: Plane) -> None:
    port = behind_nginx.engine.table.endpoints[0].port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET / HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
    raw = await reader.read()
    writer.close()
    assert b"\r\nContent-Encoding: gzip\r\n" in raw
    assert raw.endswith(b"\r\n0\r\nX-Checksum: abc\r\n\r\n")
