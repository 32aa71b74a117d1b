"""LoRA adapters at a babysitter: what is decided, and what a babysitter makes of a server that does as vLLM does."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from babysitter import lora
from babysitter.adapters import LOAD, NO_SUCH_CALL, AdapterKeeper, _words
from babysitter.backends import vllm
from babysitter.backends.plan import LaunchContext
from babysitter.lora import DWELL_S, MOST_TRIES, LoraRules, Step, Trouble, Use
from babysitter.settings import BabysitterSettings
from common.settings import Layer, SettingsError, build
from tests.babysitter.conftest import Registry, router_port
from tests.babysitter.real import PROJECT, Node, ask, running, until
from tests.ports import free_port

__all__ = ["router_port"]  # a fixture
AT_START = LoraRules({"a": "/a", "b": "/b"})
ON_DEMAND = LoraRules({"a": "/a", "b": "/b"}, on_demand=True, max_loaded=1)


@pytest.mark.parametrize(
    ("rules", "said", "loaded", "step"),
    [
        (AT_START, {}, {}, Step("a", load=True)),
        (AT_START, {}, {"a": "/a"}, Step("b", load=True)),
        (AT_START, {}, {"a": "/a", "b": "/b"}, None),
        (AT_START, {"b": False}, {"a": "/a"}, None),  # unloaded by call: it stays so
        (AT_START, {"b": False}, {"a": "/a", "b": "/b"}, Step("b", load=False)),  # the babysitter died in between
        (AT_START, {"a": True}, {"a": "/old"}, Step("a", load=False)),  # the file names another path by now
        (AT_START, {"c": True}, {"a": "/a", "b": "/b", "c": "/c"}, Step("c", load=False)),  # it left the file
        (AT_START, {}, {"a": "/a", "b": "/b", "c": "/c"}, None),  # never ours: --lora-modules
        (ON_DEMAND, {}, {}, None),
        (ON_DEMAND, {"b": True}, {}, Step("b", load=True)),  # loaded before the server was started again
        (ON_DEMAND, {"a": True, "b": True}, {"b": "/b"}, None),  # no room
    ],
)
def test_next_step_leads_from_what_is_loaded_to_what_is_wanted(
    rules: LoraRules, said: dict[str, bool], loaded: dict[str, str], step: Step | None
) -> None:
    assert lora.next_step(rules, said, loaded, {}, 0.0) == step


def test_failed_load_is_tried_again_later_and_later_and_then_no_more_L3() -> None:
    trouble: Trouble | None = None
    waits = []
    for _ in range(MOST_TRIES):
        trouble = lora.failed(trouble, "no such file", 100.0)
        waits.append(trouble.retry_at - 100.0)
    assert waits == [5, 10, 20, 40, inf]
    assert trouble is not None
    assert lora.next_step(AT_START, {}, {"b": "/b"}, {"a": trouble}, 1e9) is None
    assert lora.loadable(ON_DEMAND, {}, {"a": trouble}, {}, 1e9) == ["b"]
    assert lora.loadable(ON_DEMAND, {}, {"a": lora.failed(None, "", 0.0)}, {}, 6.0) == ["a", "b"]


def info(value: float, running: str, waiting: str = "") -> str:
    return f'vllm:lora_requests_info{{max_lora="1",running_lora_adapters="{running}",waiting_lora_adapters="{waiting}"}} {value}\n'


WORKS = "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n"
RESTS = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"


def test_use_is_read_from_the_latest_of_vllms_samples() -> None:
    history = info(100, "a") + info(300, "b", "c") + info(200, "a,b")
    assert lora.use_of(WORKS + history, "abcd", 310) == Use(frozenset("bc"), {"a": 110, "b": 10, "c": 10})
    assert lora.use_of(RESTS + history, "abcd", 310).busy == frozenset()
    assert lora.use_of(WORKS, "ab", 310).busy == frozenset("ab")  # it does not tell which
    assert lora.use_of("", "ab", 310).busy == frozenset("ab")  # it tells nothing


def test_victim_is_idle_for_longest_and_never_one_in_use_or_fresh() -> None:
    use = Use(frozenset("a"), {"a": 0, "b": 50, "c": 70})
    assert lora.victim("abc", use, {}) == "c"
    assert lora.victim("abcd", use, {"d": 60}) == "c"
    assert lora.victim("abcd", use, {}) == "d"  # never used since anybody remembers
    assert lora.victim("abc", use, {"c": DWELL_S - 1}) == "b"
    assert lora.victim("a", use, {}) is None


def test_vllm_is_started_for_adapters_and_its_own_arguments_win() -> None:
    context = LaunchContext("n", "localhost", 1, "python", "")

    def plan(*args: str, adapters: int) -> Any:
        return vllm.plan(context, model="m", args=args, env={}, work_dir=None, adapters=adapters)

    assert "--enable-lora" not in plan(adapters=0).argv
    assert plan(adapters=0).env == {}
    made = plan("--max-loras", "9", adapters=4)
    assert made.argv[-5:] == ("--enable-lora", "--max-cpu-loras", "9", "--max-loras", "9")
    assert plan(adapters=4).argv[-2:] == ("--max-cpu-loras", "5")
    assert made.env == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"adapters": {"a b": "/a"}}}, "a name is 1 to 128 characters"),
        ({"lora": {"adapters": {"a,b": "/a"}}}, "a name is 1 to 128 characters"),
        ({"lora": {"adapters": {"a": "/a", "b": "/b"}, "max_loaded": 1}}, "raise it, or set on_demand"),
        ({"lora": {"adapters": {str(n) * 100: "/a" for n in range(100)}}}, "characters"),
        ({"lora": {"adapters": {"a": "/a"}}, "expected_models": ["a"]}, "a is an adapter"),
        ({"lora": {"adapters": {"a": "/a"}}, "host": "0.0.0.0"}, "set api_key_file"),
        ({"lora": {"adapters": {"a": "/a"}}, "backend": {"type": "mock", "models": ["m"]}}, "needs a server with vLLM"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    plain = {"port": 8100, "backend": {"type": "vllm", "model": "m"}}
    with pytest.raises(SettingsError, match=message):
        build(BabysitterSettings, [Layer("file", {**plain, **changes}, {})])


def test_server_that_was_not_started_for_adapters_is_told_as_such() -> None:
    assert NO_SUCH_CALL in _words(b'{"detail":"Not Found"}')
    assert _words(b'{"error":{"message":"rank 64 is\\n larger"}}') == "rank 64 is larger"
    assert _words(b"<html>") == "<html>"


async def test_adapter_that_was_just_loaded_is_loadable_until_it_is_among_the_models() -> None:
    """Else a record says of a moment that it is neither, and requests that wait for it are refused."""

    async def load(_request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_post(LOAD, load)
    told: list[list[str]] = []
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        spec: Any = SimpleNamespace(lora=ON_DEMAND, policy=SimpleNamespace(drain_s=0))
        keeper = AdapterKeeper(
            spec,
            {},
            session,
            is_ready=lambda: True,
            persist=partial(asyncio.sleep, 0),
            changed=lambda: told.append(keeper.loadable(["base"])),
            look=lambda: None,
        )
        await keeper.look(str(server.make_url("")).rstrip("/"), [{"id": "base"}], steps=0, starts=False)
        await keeper.load("a")
    assert told == [["a", "b"]] * 3
    assert keeper.loadable(["base", "a"]) == ["b"]


@contextmanager
def node_of(directory: Path, load_s: float = 0.0, top: dict[str, Any] | None = None, **table: Any) -> Iterator[Node]:
    """A babysitter over `lora_server.py`, with folders for the adapters `a`, `b` and `c`."""
    directory.mkdir(exist_ok=True)
    for name in "abc":
        (directory / name).mkdir()
    table.setdefault("adapters", {name: str(directory / name) for name in "ab"})
    port, script = free_port(), str(PROJECT / "tests" / "babysitter" / "lora_server.py")
    args = ["-I", "-S", script, str(port), str(directory), str(load_s)]
    backend = {"type": "command", "command": sys.executable, "args": args}
    settings = {"lora": table, **(top or {})}
    probes = {"generate_path": ""}
    with running(directory, name=f"n{port}", port=port, backend=backend, top=settings, probes=probes) as node:
        yield node


def call(node: Node, what: str, name: Any) -> Any:
    return ask(f"http://127.0.0.1:{node.port + 1}/lora/{what}", {"name": name}, timeout_s=30)


def loaded(node: Node) -> list[str]:
    """As the engine lists them."""
    return [one["id"] for one in node.server("/v1/models")["data"] if one["parent"]]


def calls(node: Node, kind: str) -> list[str]:
    path = node.directory / "calls"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [name for verb, name in lines if verb == f"/v1/{kind}_lora_adapter"]


def state(node: Node, name: str) -> Any:
    return next(one for one in node.report()["adapters"] if one["name"] == name)


def until_models(node: Node, *models: str) -> None:
    until(f"models {models}", lambda: node.report().get("models") == list(models))


def test_adapters_of_the_file_are_there_before_the_server_is_ready_again_and_again_L1(tmp_path: Path) -> None:
    with node_of(tmp_path) as node:
        node.start()
        pid = node.ready()
        assert node.report()["models"] == ["base", "a", "b"]  # at once: no request may find it without them
        assert call(node, "unload", "a")["state"] == "unloaded"
        until_models(node, "base", "b")

        node.babysitters[-1].kill()  # the next one asks the engine what it has
        node.babysitters[-1].wait()
        node.start()
        assert node.ready() == pid
        assert node.report()["models"] == ["base", "b"]
        assert calls(node, "load") == ["a", "b"]

        os.kill(pid, signal.SIGKILL)
        until("started again", lambda: node.report()["restart_count"] == 1 and node.report()["status"] == "ready")
        assert node.report()["models"] == ["base", "b"]
        assert calls(node, "load") == ["a", "b", "b"]
        assert call(node, "load", "a")["state"] == "loaded"
        until_models(node, "base", "b", "a")


def test_file_that_changes_loads_unloads_and_replaces_adapters(tmp_path: Path) -> None:
    with node_of(tmp_path) as node:
        node.start()
        node.ready()
        node.top["lora"]["adapters"] = {"b": str(tmp_path / "c"), "c": str(tmp_path / "c")}
        assert node.config  # writes it
        node.babysitters[-1].send_signal(signal.SIGHUP)
        until("as the file says", lambda: sorted(loaded(node)) == ["b", "c"])
        until("replaced", lambda: calls(node, "load").count("b") == 2)
        until("told", lambda: sorted(node.report()["models"]) == ["b", "base", "c"])


def test_load_that_fails_is_told_in_the_engines_words_and_the_model_is_not_offered_L3(tmp_path: Path) -> None:
    with node_of(tmp_path, adapters={"a": str(tmp_path / "a"), "x": str(tmp_path / "none")}, on_demand=True) as node:
        node.start()
        node.ready()
        assert "No adapter found" in call(node, "load", "x")["error"]
        assert state(node, "x")["state"] == "failed"
        assert "No adapter found" in state(node, "x")["error"]
        assert "No adapter found" in call(node, "demand", "x")["error"]
        assert calls(node, "load") == ["x"]  # a request does not have it tried again at once
        (tmp_path / "none").mkdir()
        assert call(node, "load", "x") == {"name": "x", "state": "loaded", "error": None}  # a call does


def test_two_who_want_an_adapter_have_it_loaded_once(tmp_path: Path) -> None:
    with node_of(tmp_path, load_s=0.5, on_demand=True) as node:
        node.start()
        node.ready()
        assert node.report()["models"] == ["base"]
        answers: list[Any] = []
        both = [threading.Thread(target=lambda: answers.append(call(node, "demand", "a"))) for _ in range(2)]
        for one in both:
            one.start()
        for one in both:
            one.join()
        assert [answer["state"] for answer in answers] == ["loaded", "loaded"]
        assert calls(node, "load") == ["a"]


def test_least_recently_used_makes_room_and_never_one_in_use_L2(tmp_path: Path) -> None:
    adapters = {name: str(tmp_path / name) for name in "abx"}
    with node_of(tmp_path, adapters=adapters, on_demand=True, max_loaded=1) as node:
        node.start()
        node.ready()
        assert call(node, "demand", "a")["state"] == "loaded"
        (tmp_path / "busy").write_text("a")
        assert "in use" in call(node, "demand", "b")["error"]
        (tmp_path / "busy").write_text("")
        assert "in use" in call(node, "demand", "b")["error"]  # its first request may be on its way
        assert "No adapter found" in until(
            "room", lambda: (told := call(node, "demand", "x")["error"])[:3] != "all" and told
        )
        assert loaded(node) == ["a"]  # one that cannot be loaded drives nobody out
        assert call(node, "demand", "b")["state"] == "loaded"
        until("it made room", lambda: loaded(node) == ["b"])
        until_models(node, "base", "b")


def test_adapter_in_use_is_out_of_the_report_before_it_is_unloaded_L2(tmp_path: Path) -> None:
    with node_of(tmp_path) as node:
        node.restarts["drain_s"] = 60
        node.start()
        node.ready()
        (tmp_path / "busy").write_text("a")
        unloading = threading.Thread(target=call, args=(node, "unload", "a"))
        unloading.start()
        until_models(node, "base", "b")
        assert state(node, "a")["state"] == "unloading"
        assert loaded(node) == ["a", "b"]
        (tmp_path / "busy").write_text("")
        until("unloaded", lambda: loaded(node) == ["b"])
        unloading.join()


@pytest.mark.parametrize("name", ["/etc", "../a", "c", 7, None])
def test_call_names_an_adapter_of_the_settings_and_nothing_else_L4(tmp_path: Path, name: Any) -> None:
    with node_of(tmp_path) as node:
        node.start()
        node.ready()
        assert "error" in call(node, "load", name)
        assert "on_demand" in call(node, "demand", "a")["error"]
        assert sorted(loaded(node)) == ["a", "b"]


def test_first_requests_of_two_workers_load_an_adapter_once_at_one_of_two_replicas_without_a_registry_too(
    tmp_path: Path, registry: Registry, router_port: int
) -> None:
    router = f"http://127.0.0.1:{router_port}"

    def chat(model: str) -> Any:
        return (ask(f"{router}/v1/chat/completions", {"model": model, "messages": []}, timeout_s=60) or {}).get("model")

    def many(model: str) -> list[Any]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(chat, [model] * 8))

    top = {"registry_url": registry.url}
    with (
        node_of(tmp_path / "1", load_s=0.3, top=top, on_demand=True) as one,
        node_of(tmp_path / "2", load_s=0.3, top=top, on_demand=True) as two,
    ):
        for node in (one, two):
            node.start()
        for node in (one, two):
            node.ready()
        until("both are routed to", lambda: ask(f"{router}/health")["healthy_services"] == "2/2")
        listed = {model["id"]: model.get("parent") for model in ask(f"{router}/v1/models")["data"]}
        assert listed == {"base": None, "a": "base", "b": "base"}
        assert many("a") == ["a"] * 8
        assert calls(one, "load") + calls(two, "load") == ["a"]
        until("its record names it", lambda: "a" in (one.report()["models"] + two.report()["models"]))

        registry.kill()
        assert many("b") == ["b"] * 8
        assert sorted(calls(one, "load") + calls(two, "load")) == ["a", "b"]
        assert chat("c") is None


def test_adapter_is_loaded_for_whoever_has_the_servers_key_and_by_nobody_else_L4(tmp_path: Path) -> None:
    key, token = tmp_path / "key", tmp_path / "token"
    for file, text in ((key, "k" * 40), (token, "t" * 40)):
        file.write_text(text)
        file.chmod(0o600)
    top = {"host": "0.0.0.0", "api_key_file": str(key), "api_token_file": str(token)}
    with node_of(tmp_path, top=top, on_demand=True) as node:
        node.start()
        node.ready()

        def answer(what: str, secret: str | None) -> int:
            headers = {"Authorization": f"Bearer {secret}"} if secret else {}
            return httpx.post(
                f"http://127.0.0.1:{node.port + 1}/lora/{what}", json={"name": "a"}, headers=headers, timeout=30
            ).status_code

        assert [answer("demand", secret) for secret in (None, "x" * 40)] == [401, 401]
        assert [answer(what, "k" * 40) for what in ("load", "unload")] == [401, 401]
        assert answer("demand", "k" * 40) == 200
        assert answer("unload", "t" * 40) == 200
