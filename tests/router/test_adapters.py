"""LoRA adapters at the router: offered before they are loaded, loaded once at the first request, asked for where they are."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from common.tasks import TaskScope
from common.wire.record import Put, ServiceRecord
from router.adapters import REFUSED_S, AdapterLoader
from router.control.views import model_list
from router.directory import Directory
from router.model import Eligibility, Endpoint, Replica, Table
from router.policy.models import ModelRule, ModelRules
from router.proxy.paths import loads_adapters
from tests.router.conftest import MakePlane
from tests.router.fakes import Call, Plane, plain


def asking(model: str) -> bytes:
    return json.dumps({"model": model, "messages": []}).encode()


async def answer_model(call: Call) -> None:
    await call.send(plain(json.dumps({"model": json.loads(call.body)["model"]}).encode()))


async def plane_of(planes: MakePlane, **limits: Any) -> tuple[Plane, list[tuple[str, str]]]:
    """A plane whose master is a list of what it was asked for."""
    plane = await planes(**limits)
    asked: list[tuple[str, str]] = []
    plane.engine.ask_for_adapter = lambda adapter, endpoint: asked.append((adapter, endpoint))
    return plane, asked


async def until(check: Any) -> None:
    async with asyncio.timeout(10):
        while not check():
            await asyncio.sleep(0.01)


def waiting(plane: Plane) -> int:
    return len(plane.engine.waiting)


async def test_first_requests_wait_while_the_adapter_is_loaded_once_and_others_do_not(planes: MakePlane) -> None:
    plane, asked = await plane_of(planes)
    replica = await plane.add(answer_model)
    (endpoint,) = plane.route(replica, models=("m",), loadable=("a",))
    both = [asyncio.ensure_future(plane.post(asking("a"))) for _ in range(2)]
    await until(lambda: waiting(plane) == 2)
    assert asked == [("a", endpoint.id)]
    assert (await plane.post(asking("m"))).status == 200
    plane.route(replica, models=("m", "a"))
    for one in both:
        assert json.loads((await one).body) == {"model": "a"}
    assert waiting(plane) == 0
    assert plane.engine._asked_for == {}


async def test_replica_that_has_the_adapter_is_preferred_and_one_that_is_down_is_not_L2(planes: MakePlane) -> None:
    plane, asked = await plane_of(planes)
    has, may = await plane.add(answer_model), await plane.add(answer_model)
    one, two = plane.route(has, may)
    one, two = replace(one, models=("m", "a")), replace(two, loadable=("a",))
    plane.engine.set_table(Table.of(9, (one, two)))
    for _ in range(5):
        assert (await plane.post(asking("a"))).status == 200
    assert (len(has.calls), len(may.calls), asked) == (5, 0, [])
    plane.engine.set_table(Table.of(10, (replace(one, eligibility=Eligibility.DOWN), two)))
    request = asyncio.ensure_future(plane.post(asking("a")))
    await until(lambda: asked)
    assert asked == [("a", two.id)]
    plane.engine.set_table(Table.of(11, (replace(one, eligibility=Eligibility.DOWN), replace(two, models=("m", "a")))))
    assert (await request).status == 200
    assert len(may.calls) == 1


async def test_adapter_that_cannot_be_loaded_is_said_to_those_who_wait_L3(planes: MakePlane) -> None:
    plane, _ = await plane_of(planes)
    replica = await plane.add(answer_model)
    plane.route(replica, models=("m",), loadable=("a",))
    request = asyncio.ensure_future(plane.post(asking("a")))
    await until(lambda: waiting(plane) == 1)
    plane.route(replica, models=("m",))
    reply = await request
    assert reply.status == 503
    assert json.loads(reply.body)["error"]["code"] == "adapter_not_loaded"
    assert reply.header("retry-after") == "5"


async def test_who_waits_for_an_adapter_waits_no_longer_than_for_room(planes: MakePlane) -> None:
    plane, asked = await plane_of(planes, queue_timeout_s=0.3)
    replica = await plane.add(answer_model)
    (endpoint,) = plane.route(replica, models=("m",), loadable=("a",))
    reply = await plane.post(asking("a"))
    assert reply.status == 503
    assert json.loads(reply.body)["error"]["code"] == "queue_timeout"
    assert set(asked) == {("a", endpoint.id)}


async def test_master_is_asked_again_while_somebody_waits_for_an_adapter(planes: MakePlane) -> None:
    plane, asked = await plane_of(planes)
    replica = await plane.add(answer_model)
    plane.route(replica, models=("m",), loadable=("a",))
    request = asyncio.ensure_future(plane.post(asking("a")))
    await until(lambda: len(asked) == 2)
    plane.route(replica, models=("m", "a"))
    assert (await request).status == 200


async def test_line_for_an_adapter_is_bounded(planes: MakePlane) -> None:
    plane, _ = await plane_of(planes, queue_limit=1)
    replica = await plane.add(answer_model)
    plane.route(replica, models=("m",), loadable=("a",))
    first = asyncio.ensure_future(plane.post(asking("a")))
    await until(lambda: waiting(plane) == 1)
    assert (await plane.post(asking("a"))).status == 429
    plane.route(replica, models=("m", "a"))
    assert (await first).status == 200


async def test_fallback_is_not_taken_for_an_adapter_that_can_be_loaded(planes: MakePlane) -> None:
    plane = await planes(rules=ModelRules("cost", {"a": ModelRule(fallbacks=("m",))}))
    replica = await plane.add(answer_model)
    plane.route(replica, models=("m",), loadable=("a",))
    request = asyncio.ensure_future(plane.post(asking("a")))
    await until(lambda: waiting(plane) == 1)
    plane.route(replica, models=("m", "a"))
    assert json.loads((await request).body) == {"model": "a"}


PATHS = [
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/load%5Flora_adapter", "/v1%2Fload_lora_adapter"),
    *("/x/v1/Load_lora_adapter/", "/adapters", "/adapters/a", "/lora-adapters", "/%6cora-adapters?id=1"),
]


@pytest.mark.parametrize("path", PATHS)
async def test_engines_own_calls_for_adapters_are_not_passed_on_whatever_the_settings_L4(
    planes: MakePlane, path: str
) -> None:
    plane = await planes(any_path=True, extra_paths=frozenset({path.encode()}))
    replica = await plane.add(answer_model)
    plane.route(replica)
    body = json.dumps({"lora_name": "x", "lora_path": "/etc", "model": "m"}).encode()
    reply = await plane.post(body, path)
    assert reply.status == 404
    assert "svcctl lora" in json.loads(reply.body)["error"]["message"]
    assert replica.calls == []
    assert not loads_adapters(b"/v1/models/load_lora_adapters")


STEERING = ["/sleep?level=2", "/v1/wake_up", "/is_sleeping", "/Collective%5Frpc", "/x/collective_rpc/"]


@pytest.mark.parametrize("path", STEERING)
async def test_calls_that_steer_an_engine_are_not_passed_on_whatever_the_settings(planes: MakePlane, path: str) -> None:
    plane = await planes(any_path=True, extra_paths=frozenset({path.partition("?")[0].encode()}))
    replica = await plane.add(answer_model)
    plane.route(replica)
    reply = await plane.post(json.dumps({"method": "shutdown", "model": "m"}).encode(), path)
    assert reply.status == 404
    assert "svcctl replicas sleep" in json.loads(reply.body)["error"]["message"]
    assert replica.calls == []


def record(**metadata: Any) -> ServiceRecord:
    said = {"type": "openai-api", "models": ["m"], "loadable": ["a", 7], "babysitter_url": "http://127.0.0.1:9"}
    url = "http://127.0.0.1:8"
    return ServiceRecord(
        name="r", host="127.0.0.1", port=8, url=url, metadata={**said, **metadata}, instance_id="i", incarnation=1
    )


def directory_of(one: ServiceRecord) -> tuple[Directory, Replica]:
    directory = Directory(grace_s=60, max_errors=3, slots=8)
    directory.apply(Put("e", 1, one), 0.0)
    return directory, directory.replicas["r"]


def endpoint_of(directory: Directory) -> Endpoint:
    return directory.table().endpoints[0]


def test_loadable_adapter_is_offered_as_a_model_with_its_parent() -> None:
    directory, replica = directory_of(record())
    assert endpoint_of(directory).loadable == ("a",)
    assert directory.table().loadable == {"a": (endpoint_of(directory),)}
    offered = {one["id"]: one.get("parent") for one in model_list([replica]).data}
    assert offered == {"m": None, "a": "m"}


def test_answer_of_a_babysitter_holds_until_its_next_record() -> None:
    directory, replica = directory_of(record())
    assert directory.note_load("r", replica.generation, "a", refused_until=None)
    assert endpoint_of(directory).models == ("m", "a")
    assert endpoint_of(directory).loadable == ()
    assert not directory.note_load("r", "another life", "a", refused_until=None)
    directory.apply(Put("e", 2, record()), 0.0)
    assert endpoint_of(directory).models == ("m",)


def test_refused_adapter_is_not_offered_for_a_time_whatever_the_record_says_L3() -> None:
    directory, replica = directory_of(record())
    directory.note_load("r", replica.generation, "a", refused_until=10.0)
    directory.apply(Put("e", 2, record(note="another")), 0.0)
    assert endpoint_of(directory).loadable == ()
    assert not directory.expire(9.0)
    assert directory.expire(10.0)
    assert endpoint_of(directory).loadable == ("a",)


def test_key_goes_to_a_babysitter_at_the_replicas_own_host_only_L4() -> None:
    _, replica = directory_of(record())
    replica.authorization = "Bearer secret"
    assert replica.babysitter is not None
    assert (replica.babysitter.url, replica.babysitter.authorization) == ("http://127.0.0.1:9", "Bearer secret")
    directory, replica = directory_of(record(babysitter_url="http://elsewhere:9"))
    assert replica.babysitter is None
    assert endpoint_of(directory).loadable == ()
    _, replica = directory_of(replace_url(record(), "https://127.0.0.1:8"))
    assert replica.babysitter is None  # its key would be readable on its way


def replace_url(one: ServiceRecord, url: str) -> ServiceRecord:
    return ServiceRecord(name=one.name, host=one.host, port=one.port, url=url, metadata=one.metadata)


class Babysitters:
    """Two of them, each answering as told; `asked` is who was, with what."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = statuses
        self.asked: list[tuple[int, Any, str | None]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, wanted: list[str], endpoint: str) -> list[tuple[str, str, float | None]]:
        """Have adapters loaded; what the master is told."""

        def handler(number: int) -> Any:
            async def answer(request: web.Request) -> web.Response:
                assert request.path == "/lora/demand"
                self.asked.append((number, await request.json(), request.headers.get("Authorization")))
                await self.gate.wait()
                return web.json_response({"error": "no such file"}, status=self.statuses[number])

            return answer

        noted: list[tuple[str, str, float | None]] = []
        servers, replicas = [], []
        for number in range(len(self.statuses)):
            app = web.Application()
            app.router.add_post("/{path:.*}", handler(number))
            server = TestServer(app)
            await server.start_server()
            servers.append(server)
            _, replica = directory_of(record(babysitter_url=str(server.make_url("")).rstrip("/")))
            replica.record = ServiceRecord(
                name=f"r{number}", host="127.0.0.1", port=8, url=replica.record.url, metadata=replica.record.metadata
            )
            replica.authorization = f"Bearer key-{number}"
            replicas.append(replica)
        async with aiohttp.ClientSession() as session, TaskScope("t") as scope:
            loader = AdapterLoader(
                session,
                scope,
                replicas=lambda: replicas,
                note=lambda one, adapter, until: noted.append((one.name, adapter, until)),
            )
            ids = {replica.name: replica.id for replica in replicas}
            for adapter in wanted:
                loader.wanted(adapter, ids[endpoint])
            await until(lambda: not loader._loading or (noted and noted[-1][2] is None))
            if self.statuses == (200, 200):
                loader.wanted(wanted[0], ids["r0"])  # of a worker whose table is older
                await asyncio.sleep(0.05)
        for server in servers:
            await server.close()
        return noted


async def test_two_wishes_are_one_load_where_the_worker_chose() -> None:
    babysitters = Babysitters(200, 200)
    assert await babysitters.run(["a", "a", "unknown"], "r1") == [("r1", "a", None)]
    assert babysitters.asked == [(1, {"name": "a"}, "Bearer key-1")]


async def test_babysitter_without_room_leads_to_the_next_and_one_that_refuses_is_set_aside_L3() -> None:
    babysitters = Babysitters(200, 503)
    assert await babysitters.run(["a"], "r1") == [("r0", "a", None)]
    assert [one[0] for one in babysitters.asked] == [1, 0]
    noted = await Babysitters(503, 502).run(["a"], "r1")
    assert [one[:2] for one in noted] == [("r1", "a")]
    assert noted[0][2] is not None
    assert noted[0][2] - asyncio.get_running_loop().time() == pytest.approx(REFUSED_S, abs=5)
    assert await Babysitters(503, 503).run(["a"], "r0") == []
