"""Calls that name no model go to engines that answer such calls, and never to one of another kind."""

import asyncio
import json
import random
import threading
from dataclasses import replace
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from common.http.client import make_session
from common.wire.hints import hints_of
from common.wire.record import Put, ServiceRecord
from router.directory import Directory
from router.model import Replica, Table
from router.prober import ReplicaProber
from router.serves import KINDS, call_of, calls_that_matter, declared, has_messages, learned
from tests.engines import llama_cpp
from tests.ports import free_port
from tests.router.fakes import Call, Plane, plain

VLLM = json.dumps({"openapi": "3.1.0", "paths": {"/v1/chat/completions": {}, "/v1/load_lora_adapter": {}, "/ping": {}}})
LLAMA = b'{"data":[{"id":"m","owned_by":"llamacpp"}]}'
NO_MODEL = b'{"messages":[{"role":"user","content":"hi"}]}'


def test_a_call_is_known_by_its_path_without_the_version_W51() -> None:
    assert [call_of(path) for path in ("/v1/embeddings", "/embeddings", "/v2/rerank", "/v1")] == [
        "/embeddings",
        "/embeddings",
        "/rerank",
        "/v1",
    ]


@pytest.mark.parametrize(
    ("setting", "serves", "learned_calls", "has"),
    [
        (None, None, None, None),
        (None, None, (), None),
        (None, None, ("/chat/completions", "/messages"), True),
        (None, None, ("/chat/completions",), False),
        (None, None, ("/embeddings",), None),
        (None, ["generate"], None, None),
        (None, ["/v1/chat/completions", "/v1/messages"], None, True),
        (None, "/v1/chat/completions", None, False),
        ("native", None, ("/chat/completions",), True),
        ("translate", ["/v1/messages"], ("/messages",), False),
    ],
)
def test_who_has_anthropics_call_is_set_or_told(
    setting: str | None, serves: Any, learned_calls: tuple[str, ...] | None, *, has: bool | None
) -> None:
    assert has_messages(setting, serves, learned_calls) is has
    record = ServiceRecord(
        name="a", host="h", port=1, url="http://h:1", metadata={"messages": setting, "serves": serves}
    )
    directory = Directory(grace_s=1.0, max_errors=1, slots=1)
    directory.set_static([record])
    directory.note_probe("a", ok=True, calls=learned_calls)
    assert directory.table().endpoints[0].messages is has


@pytest.mark.parametrize(
    ("serves", "calls"),
    [
        ("embed", KINDS["embed"]),
        (["rank", "/v1/load_lora_adapter"], (*KINDS["rank"], "/load_lora_adapter")),
        (["nonsense"], None),
        (7, None),
        (None, None),
    ],
)
def test_a_record_declares_kinds_or_paths_W51(serves: object, calls: tuple[str, ...] | None) -> None:
    assert declared(hints_of({"serves": serves}).serves) == calls


def test_an_engine_tells_its_calls_by_its_own_page_or_by_its_signature_W51() -> None:
    matter = calls_that_matter(["/v1/load_lora_adapter", "/slots"])
    assert learned(VLLM.encode(), b"", matter) == ("/chat/completions", "/load_lora_adapter")
    found = learned(b"not found", LLAMA, matter)
    assert {"/chat/completions", "/infill", "/slots"} <= set(found)
    assert not {"/load_lora_adapter", "/props"} & set(found)
    assert "/props" in learned(b"", LLAMA, calls_that_matter(["*"]))
    for odd in (
        b"",
        b"{",
        b"[]",
        b'{"paths":{}}',
        b'{"paths":7}',
        b'{"data":[{"id":"m","owned_by":"me"}]}',
        b"[" * 9999,
    ):
        assert learned(odd, odd, matter) == ()


async def answer_ok(call: Call) -> None:
    await call.send(plain(b'{"ok":1}'))


async def test_a_call_without_a_model_never_goes_to_an_engine_of_another_kind_W51(plane: Plane) -> None:
    replicas = [await plane.add(answer_ok) for _ in range(3)]
    vllm, llama, unknown = plane.route(*replicas)
    known = {vllm.id: ("/chat/completions", "/load_lora_adapter"), llama.id: ("/embeddings", "/infill")}
    table = [replace(one, serves=known.get(one.id)) for one in (vllm, llama, unknown)]
    plane.engine.set_table(Table.of(50, tuple(table)))

    async def asked(path: str, body: bytes = NO_MODEL) -> list[int]:
        before = [len(replica.calls) for replica in replicas]
        for _ in range(6):
            assert (await plane.post(body, path)).status == 200
        return [len(replica.calls) - count for replica, count in zip(replicas, before, strict=True)]

    assert await asked("/v1/chat/completions") == [6, 0, 0]
    assert await asked("/embeddings") == [0, 6, 0]
    assert await asked("/infill") == [0, 6, 0]
    assert await asked("/v1/rerank") == [0, 0, 6]  # nobody says so, but this one says nothing at all
    assert 0 not in await asked("/v1/chat/completions", b'{"model":"m","messages":[]}')  # a model decides alone
    plane.engine.set_table(Table.of(51, tuple(table[:2])))
    refused = await plane.post(NO_MODEL, "/v1/rerank")
    assert (refused.status, json.loads(refused.body)["error"]["code"]) == (503, "no_healthy_replica")


async def test_the_table_has_what_is_declared_else_what_was_learned_W51() -> None:
    directory = Directory(grace_s=60, max_errors=3, slots=4)
    for name, metadata in (("declared", {"serves": ["embed"]}), ("learned", {}), ("silent", {})):
        more = {"type": "openai-api", **metadata}
        record = ServiceRecord(name=name, host="127.0.0.1", port=1, url="http://127.0.0.1:1", metadata=more)
        directory.apply(Put("e", 1, record), 0.0)
    assert directory.note_probe("learned", ok=True, calls=("/completions",))
    directory.note_probe("silent", ok=True, calls=())
    found = {endpoint.name: endpoint.serves for endpoint in directory.table().endpoints}
    assert found == {"declared": KINDS["embed"], "learned": ("/completions",), "silent": None}


async def ask(url: str, extra: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """What the prober learns of a server's calls."""
    host, _, port = url.removeprefix("http://").partition(":")
    record = ServiceRecord(name="a", host=host, port=int(port), url=url)
    made: dict[str, Any] = {"interval_s": 5.0, "timeout_s": 5.0, "rng": random.Random(1)}
    async with make_session(timeout_s=5) as session:
        prober = ReplicaProber(session, lambda: (), lambda *_: None, calls=calls_that_matter(extra), **made)
        return (await prober.ask(Replica(record, generation="1", leased=True))).calls


async def test_a_fastapi_server_tells_its_calls_itself_W51() -> None:
    app = FastAPI()

    @app.post("/v1/embeddings")
    async def embeddings() -> dict[str, str]:
        return {}

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        async with asyncio.timeout(20):
            while not server.started:
                await asyncio.sleep(0.02)
        assert await ask(f"http://127.0.0.1:{port}") == ("/embeddings",)
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join)


@pytest.mark.world
@pytest.mark.timeout(700)
async def test_a_lora_load_is_not_for_llama_cpp_W51() -> None:
    with llama_cpp.serving("tiny") as engine:
        calls = await ask(engine.url, ("/v1/load_lora_adapter", "/slots"))
    assert calls is not None
    assert {"/chat/completions", "/infill", "/slots"} <= set(calls)
    assert "/load_lora_adapter" not in calls
