"""LoRA adapters on a real vLLM, behind babysitter, registry and router: what the fake server's tests say holds there, too."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from babysitter.agent.templates import SHIPPED
from babysitter.lora import use_of
from tests.babysitter.agent.agent_process import agent
from tests.babysitter.conftest import Registry, registry, router_port
from tests.babysitter.real import PROJECT, Node, ask, running
from tests.engines import vllm
from tests.engines.harness import START_S, until

__all__ = ["registry", "router_port"]  # fixtures
pytestmark = [pytest.mark.world, pytest.mark.timeout(1800)]
PARENT = "tiny"


def backend() -> dict[str, Any]:
    """`type = "vllm"`, as an operator would write it: what it needs for adapters, the babysitter adds."""
    program = vllm.program()
    path = f"{program.parent}:{os.environ['PATH']}"
    return {
        "type": "vllm",
        "model": str(vllm.model("llama")),
        "args": list(vllm.FLAGS),
        "env": {**vllm.ENVIRONMENT, "PATH": path},
    }


def logged(node: Node, words: str) -> int:
    """How often the server wrote these."""
    files = (node.directory / "logs").glob(f"server_{node.name}_std*.log")
    return sum(path.read_text().count(words) for path in files)


def loads(node: Node, adapter: str) -> int:
    return logged(node, f"Loaded new LoRA adapter: name '{adapter}'")


def state(node: Node, adapter: str) -> tuple[str, str | None]:
    one = next(one for one in node.report()["adapters"] if one["name"] == adapter)
    return one["state"], one["error"]


async def say(http: aiohttp.ClientSession, model: str, **more: Any) -> tuple[int, Any]:
    body = {"model": model, "prompt": "the quick brown fox", "max_tokens": 16, "temperature": 0, **more}
    async with http.post("/v1/completions", json=body) as answer:
        return answer.status, await (answer.text() if more.get("stream") else answer.json())


def models(node: Node) -> list[str]:
    """As vLLM lists them."""
    return [one["id"] for one in node.server("/v1/models")["data"]]


async def has_requests(http: aiohttp.ClientSession, node: Node, adapter: str) -> bool:
    async with http.get(f"http://127.0.0.1:{node.port}/metrics") as answer:
        return adapter in use_of(await answer.text(), [adapter], 0.0).busy


def text(answer: tuple[int, Any]) -> str:
    assert answer[0] == 200, answer
    return str(answer[1]["choices"][0]["text"])


async def test_adapters_of_vllm_are_loaded_at_their_first_request_make_room_and_come_back_L1_L2_L3_L4(
    tmp_path: Path, registry: Registry, router_port: int
) -> None:
    adapters = {name: str(vllm.model(name)) for name in ("lora-1", "lora-2")}
    (tmp_path / "empty").mkdir()
    lora = {"adapters": {**adapters, "bad": str(tmp_path / "empty")}, "on_demand": True, "max_loaded": 1}
    top = {"registry_url": registry.url, "lora": lora}
    router = f"http://127.0.0.1:{router_port}"
    with running(tmp_path, top=top) as node:
        node.restarts["drain_s"] = 120
        node.backend = backend()
        node.start()
        await asyncio.to_thread(node.ready, START_S)
        async with aiohttp.ClientSession(router, timeout=aiohttp.ClientTimeout(total=600)) as http:
            await asyncio.to_thread(until, "routed", lambda: ask(f"{router}/health")["healthy_services"] == "1/1")
            listed = {model["id"]: model.get("parent") for model in ask(f"{router}/v1/models")["data"]}
            assert listed == {PARENT: None, "lora-1": PARENT, "lora-2": PARENT, "bad": PARENT}

            plain = text(await say(http, PARENT))
            first = {text(one) for one in await asyncio.gather(*(say(http, "lora-1") for _ in range(4)))}
            assert len(first) == 1
            assert plain not in first  # the adapter's own words
            assert loads(node, "lora-1") == 1

            # One in use stays until its stream has ended; the request for the other waits for that.
            stream = asyncio.ensure_future(say(http, "lora-1", max_tokens=3000, ignore_eos=True, stream=True))
            async with asyncio.timeout(60):
                while not await has_requests(http, node, "lora-1"):
                    await asyncio.sleep(0.05)
            assert not stream.done()
            while (other := await say(http, "lora-2"))[0] == 503:
                pass  # a busy machine writes the stream for longer than a request may wait
            assert stream.done()
            assert "[DONE]" in (await stream)[1]
            assert text(other) not in {plain, *first}
            await asyncio.to_thread(until, "it made room", lambda: models(node) == [PARENT, "lora-2"])

            status, answer = await say(http, "bad")
            assert (status, answer["error"]["code"]) == (503, "adapter_not_loaded")
            found, error = state(node, "bad")
            assert found == "failed"
            assert "No adapter found" in str(error)  # vLLM's own words
            assert state(node, "lora-2") == ("loaded", None)
            async with http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/x"}) as refused:
                assert refused.status == 404

            await check_restarts(http, node, router)


async def check_restarts(http: aiohttp.ClientSession, node: Node, router: str) -> None:
    """A babysitter that comes back asks the engine; a server that comes back is given its adapters first."""
    again = text(await say(http, "lora-2"))
    before = loads(node, "lora-2")
    node.babysitters[-1].kill()
    node.babysitters[-1].wait()
    node.start()
    pid = await asyncio.to_thread(node.ready)
    assert state(node, "lora-2") == ("loaded", None)
    assert loads(node, "lora-2") == before
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(until, "its end is noticed", lambda: node.report()["restart_count"] == 1)
    await asyncio.to_thread(node.ready, START_S)
    assert node.report()["models"] == [PARENT, "lora-2"]
    await asyncio.to_thread(until, "routed", lambda: ask(f"{router}/health")["healthy_services"] == "1/1")
    assert text(await say(http, "lora-2")) == again
    assert ask(f"http://127.0.0.1:{node.port + 1}/lora/unload", {"name": "lora-2"}, 150)["state"] == "unloaded"
    assert models(node) == [PARENT]


def test_adapters_of_the_shipped_template_are_loaded_in_every_replica_made_of_it_L1(tmp_path: Path) -> None:
    """Its table's words are put in force; a node without accelerators takes it once it needs none."""
    shipped = (SHIPPED / "vllm.toml").read_text().replace("accelerators = 1", "accelerators = 0")
    shipped = shipped.replace("# [lora]", "[lora]").replace("# adapters = { sql", "adapters = { sql")
    shipped = shipped.replace("/models/adapters/sql", str(vllm.model("lora-1")))
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "vllm.toml").write_text(shipped)
    settings = {"babysitter_command": [sys.executable, "-m", "babysitter"], "templates_dir": str(templates)}
    path = f"{vllm.program().parent}:{os.environ['PATH']}"
    env = {**vllm.ENVIRONMENT, "PYTHONPATH": str(PROJECT), "PATH": path}
    parameters = {"model": str(vllm.model("llama")), "dtype": "float32", "enforce_eager": True, "max_num_seqs": 16}
    body = {"backend": {"template": "vllm", "parameters": parameters}, "model_name": PARENT, "request_id": "dep-u-1"}
    with agent(tmp_path, settings=settings, env=env) as node:
        node.start()
        replica_id = ask(f"{node.url}/api/v1/replicas", body)["replica_id"]
        ready = until("ready", lambda: (found := node.info(replica_id)).get("status") == "ready" and found)
        assert ready["models"] == [PARENT, "sql"]
        asked = {"prompt": "the quick brown fox", "max_tokens": 16, "temperature": 0}
        url = f"{ready['base_url']}/v1/completions"
        answers = [httpx.post(url, json={"model": model, **asked}, timeout=120) for model in ready["models"]]
        texts = {text((answer.status_code, answer.json())) for answer in answers}
        assert len(texts) == 2  # the adapter's own words
