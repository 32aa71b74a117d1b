"""Streams of a replica behind an nginx that compresses and adds trailers."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.router.fakes import DONE, SSE_HEAD, Call, Plane, event
from tests.router.nginx import nginx
from tests.router.test_raw_responses import unchunk
from tests.router.test_streams import blamed

pytestmark = [pytest.mark.world, pytest.mark.timeout(700)]


COMPRESSES = (
    "gzip on; gzip_types text/event-stream application/json; gzip_min_length 1; gzip_proxied any; "
    "add_trailer X-Checksum abc;"
)
STREAMS = "proxy_http_version 1.1; proxy_buffering off;"
TEXT = b'data: {"t":"one"}\n\ndata: {"t":"two"}\n\ndata: [DONE]\n\n'


@pytest.fixture
async def behind_nginx(plane: Plane, tmp_path: Path) -> AsyncIterator[Plane]:
    """A replica that streams, reached through an nginx that compresses what may be compressed, and adds a trailer."""

    async def stream(call: Call) -> None:
        for part in (SSE_HEAD, event("one"), event("two"), DONE):
            await call.send(part)
            await asyncio.sleep(0.005)

    replica = await plane.add(stream)
    async with nginx(tmp_path, replica.port, http=COMPRESSES, location=STREAMS) as port:
        plane.route(port)
        yield plane


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
