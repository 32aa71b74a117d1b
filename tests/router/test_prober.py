import asyncio
import random
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from common.discovery.record import ServiceRecord
from common.http.client import make_session
from router.model import Replica
from router.prober import Finding, Prober, model_ids
from tests.common.model_server import model_server


def replica(url: str, name: str = "a") -> Replica:
    host, _, port = url.removeprefix("http://").partition(":")
    return Replica(ServiceRecord(name=name, host=host, port=int(port), url=url), generation="1", leased=True)


@pytest.mark.parametrize("content", [b'{"data":[{"id":"caf\xe9"}]}', b"[" * 5000, b"", b"{", b'{"data":{}}', b"7"])
def test_what_is_no_model_list_is_none(content: bytes) -> None:
    assert model_ids(content) is None


async def test_no_replica_can_end_the_prober_D4() -> None:
    async def models(_request: web.Request) -> web.Response:
        return web.Response(body=b'{"data":[{"id":"caf\xe9"}]}')

    app = web.Application()
    app.router.add_get("/{path:.*}", models)
    found: dict[str, Finding] = {}
    async with TestServer(app) as server, make_session(timeout_s=2) as session:
        several = [
            replica(str(server.make_url("")).rstrip("/"), "odd"),
            replica("http://gpu1..lab:9000", "nameless"),
            replica(f"http://{'a' * 64}:9000", "long"),
        ]

        def note(name: str, _generation: str, finding: Finding) -> None:
            found[name] = finding

        made: dict[str, Any] = {"interval_s": 5.0, "timeout_s": 1.0, "rng": random.Random(1)}
        prober = Prober(session, lambda: several, note, **made)
        running = asyncio.ensure_future(prober.run())
        async with asyncio.timeout(10):
            while len(found) < 3:
                await asyncio.sleep(0.01)
        assert {name: finding.ok for name, finding in found.items()} == {"odd": True, "nameless": False, "long": False}
        assert not running.done()
        several.append(replica(str(server.make_url("")).rstrip("/"), "new"))
        prober.look()
        async with asyncio.timeout(0.4):  # less than a tick
            while "new" not in found:
                await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


@pytest.mark.parametrize("count", [1, 338, 2000])
async def test_model_list_that_comes_in_two_packets_is_learned_W14(count: int) -> None:
    names = tuple(f"model-{number}" for number in range(count))
    async with model_server(*names) as server, make_session(timeout_s=5) as session:
        made: dict[str, Any] = {"interval_s": 5.0, "timeout_s": 5.0, "rng": random.Random(1)}
        finding = await Prober(session, lambda: (), lambda *_: None, **made).ask(replica(server.url))
    assert finding == Finding(ok=True, models=names, prefix="/v1")


async def test_a_probe_leaves_no_connection_behind_W55() -> None:
    asked: list[str | None] = []

    async def healthy(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Connection"))
        return web.json_response({"data": [{"id": "m"}]})

    app = web.Application()
    app.router.add_get("/{path:.*}", healthy)
    made: dict[str, Any] = {"interval_s": 5.0, "timeout_s": 1.0, "rng": random.Random(1)}
    async with TestServer(app) as server, make_session(timeout_s=2) as session:
        prober = Prober(session, list, lambda *_: None, **made)
        assert (await prober.ask(replica(str(server.make_url("")).rstrip("/")))).ok
    assert set(asked) == {"close"}
