import asyncio
import random
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from common.http.client import make_session
from common.wire.record import ServiceRecord
from router import prober as probers
from router.control import views
from router.model import Replica
from router.prober import ProbeResult, ReplicaProber, model_ids, model_objects
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
    found: dict[str, ProbeResult] = {}
    async with TestServer(app) as server, make_session(timeout_s=2) as session:
        several = [
            replica(str(server.make_url("")).rstrip("/"), "odd"),
            replica("http://gpu1..lab:9000", "nameless"),
            replica(f"http://{'a' * 64}:9000", "long"),
        ]

        def note(name: str, _generation: str, finding: ProbeResult) -> None:
            found[name] = finding

        made: dict[str, Any] = {"interval_s": 5.0, "timeout_s": 1.0, "rng": random.Random(1)}
        prober = ReplicaProber(session, lambda: several, note, **made)
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
        finding = await ReplicaProber(session, lambda: (), lambda *_: None, **made).ask(replica(server.url))
    assert finding == ProbeResult(ok=True, models=names, prefix="/v1", calls=())


async def test_a_probe_leaves_no_connection_behind_W55() -> None:
    asked: list[str | None] = []

    async def healthy(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Connection"))
        return web.json_response({"data": [{"id": "m"}]})

    app = web.Application()
    app.router.add_get("/{path:.*}", healthy)
    made: dict[str, Any] = {"interval_s": 5.0, "timeout_s": 1.0, "rng": random.Random(1)}
    async with TestServer(app) as server, make_session(timeout_s=2) as session:
        prober = ReplicaProber(session, list, lambda *_: None, **made)
        assert (await prober.ask(replica(str(server.make_url("")).rstrip("/")))).ok
    assert set(asked) == {"close"}


def prober_of(session: Any, **more: Any) -> ReplicaProber:
    made: dict[str, Any] = {"interval_s": 30.0, "timeout_s": 5.0, "rng": random.Random(1), **more}
    return ReplicaProber(session, lambda: (), lambda *_: None, **made)


async def test_models_are_asked_at_every_probe_and_read_when_they_changed_W15(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[bytes] = []

    def read(content: bytes) -> tuple[str, ...] | None:
        reads.append(content)
        return model_ids(content)

    monkeypatch.setattr(probers, "model_ids", read)
    async with model_server("m") as server, make_session(timeout_s=5) as session:
        prober, one = prober_of(session), replica(server.url)
        one.probed_ok, one.learned_models, one.learned_prefix, one.learned_calls = True, ("m",), "/v1", ()
        server.is_restless = False
        for models in (["m"], ["m"], ["m", "lora"], ["other"]):
            server.models = models
            assert (await prober.ask(one)).models == tuple(models)
    assert (server.calls, len(reads)) == (4, 3)


async def test_models_that_a_babysitter_of_ours_watches_are_not_asked_again_W15() -> None:
    async with model_server("m") as server, make_session(timeout_s=5) as session:
        one = replica(server.url)
        metadata = {"models": ["m"], "models_list": [{"id": "m"}]}
        one = replace(one, record=msgspec.structs.replace(one.record, instance_id="i", metadata=metadata))
        one.probed_ok, one.learned_prefix, one.learned_calls = True, "/v1", ()
        assert await prober_of(session).ask(one) == ProbeResult(ok=True)
        assert server.calls == 0
        one = replace(one, record=msgspec.structs.replace(one.record, instance_id=None))
        assert (await prober_of(session).ask(one)).models == ("m",)


@pytest.mark.parametrize("status", [401, 404, 500])
async def test_answer_other_than_success_teaches_no_models_W15(status: int) -> None:
    async with model_server("m") as server, make_session(timeout_s=5) as session:
        server.status = status
        assert (await prober_of(session).ask(replica(server.url))).models is None


def test_replica_in_doubt_is_asked_sooner_and_at_once_after_a_good_probe_W24() -> None:
    doubted: set[str] = set()
    prober = prober_of(None, is_doubted=lambda one: one.name in doubted)
    one = replica("http://h:1")
    one.probed_ok = True
    assert prober._pause_s(one) == 30.0
    doubted.add(one.name)
    assert prober._pause_s(one) == probers.SUSPECT_INTERVAL_S
    one.doubted = True
    assert prober._pause_s(one) == probers.SUSPECT_INTERVAL_S
    one.probe_successes = 1
    assert prober._pause_s(one) == probers.RECHECK_S


async def test_replica_that_has_not_answered_yet_is_not_asked_beside_that_W24() -> None:
    asked, go = [], asyncio.Event()

    async def hold(_request: web.Request) -> web.Response:
        asked.append(1)
        await go.wait()
        return web.Response()

    app = web.Application()
    app.router.add_get("/{path:.*}", hold)
    async with TestServer(app) as server, make_session(timeout_s=5) as session:
        one = replica(str(server.make_url("")).rstrip("/"))
        found = asyncio.Event()
        made: dict[str, Any] = {"interval_s": 0.01, "timeout_s": 5.0, "rng": random.Random(1)}
        prober = ReplicaProber(session, lambda: [one], lambda *_: found.set(), **made)
        running = asyncio.ensure_future(prober.run())
        for _ in range(20):
            prober.look()
            await asyncio.sleep(0.02)
        assert len(asked) == 1
        go.set()
        await asyncio.wait_for(found.wait(), 5)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_model_objects_of_a_server_keep_all_their_members_W19() -> None:
    told = {"id": "m", "object": "model", "created": 7, "owned_by": "vllm", "max_model_len": 32768, "root": "org/m"}

    async def models(_request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [told]})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    async with TestServer(app) as server, make_session(timeout_s=5) as session:
        asked = replica(str(server.make_url("")).rstrip("/"))
        prober = ReplicaProber(session, list, lambda *_: None, interval_s=5, timeout_s=5, rng=random.Random(1))
        for _ in range(2):
            finding = await prober.ask(asked)
            assert finding.objects == {"m": told}  # also of a list that is as it was
    asked.probed_ok, asked.learned_models, asked.learned_objects = True, ("m",), finding.objects or {}
    assert views.model_list([asked]).data == [told]
    assert model_objects(b'[{"id":"m","x":"' + b"y" * (256 << 10) + b'"}]') == {}


async def test_neighbours_of_one_that_does_not_answer_are_asked_soon_B20(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that dies: the turn of its other replicas would come in an hour."""
    monkeypatch.setattr(probers, "SUSPECT_INTERVAL_S", 0.01)
    monkeypatch.setattr(probers, "TICK_S", 0.01)
    status = 200

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server, make_session(timeout_s=2) as session:
        url = str(server.make_url("")).rstrip("/")
        here = [replica(url, "first"), replica(url, "second")]
        away = replica(url.replace("127.0.0.1", "localhost"), "away")
        asked = {"first": 0, "second": 0, "away": 0}

        def note(name: str, _generation: str, finding: ProbeResult) -> None:
            asked[name] += 1
            assert finding.ok is (status == 200)

        everyone = [*here, away]
        for one in everyone:
            one.probed_ok = True
        made: dict[str, Any] = {"interval_s": 3600.0, "timeout_s": 2.0, "rng": random.Random(1)}
        prober = ReplicaProber(session, lambda: everyone, note, **made)
        running = asyncio.ensure_future(prober.run())
        async with asyncio.timeout(10):
            while min(asked.values()) < 1:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert asked == {"first": 1, "second": 1, "away": 1}
            status = 500
            prober._turns["first"].at -= 4000.0  # an hour later
            while asked["second"] < 3:
                await asyncio.sleep(0.01)
        assert asked["away"] == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
