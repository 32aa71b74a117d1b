"""Two real vLLMs that store responses, behind two routers of two workers: whoever is asked, the replica that made one answers."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.babysitter.conftest import Registry, registry
from tests.babysitter.real import PROJECT, Node, ask, running
from tests.engines import vllm
from tests.engines.harness import START_S, until
from tests.engines.test_vllm import alive
from tests.ports import free_port

__all__ = ["registry"]  # a fixture
pytestmark = [pytest.mark.world, pytest.mark.timeout(1800)]
STORES = {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}


@contextmanager
def router(folder: Path, registry_url: str, port: int) -> Iterator[int]:
    """A router that knows both replicas; ended by kill -9, so that it remembers nothing."""
    flags = ("--router-port", str(port), "--registry-url", registry_url, "--data-dir", str(folder / f"data-{port}"))
    argv = [sys.executable, "-m", "router", *flags, "--workers", "2"]
    with (
        (folder / "router.log").open("ab") as out,
        subprocess.Popen(argv, cwd=PROJECT, stdout=out, stderr=out) as process,
    ):
        try:
            health = f"http://127.0.0.1:{port}/health"
            until("both are routed", lambda: (ask(health) or {}).get("healthy_services") == "2/2")
            yield port
        finally:
            process.kill()


def client(port: int) -> openai.OpenAI:
    """A new one each time: its connection may be any worker's."""
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0, timeout=120)


def say(port: int, previous: str | None, *, stream: bool) -> str:
    """One turn; the id of its response."""
    asked: dict[str, Any] = {
        "model": "tiny",
        "input": "hello",
        "max_output_tokens": 4,
        "previous_response_id": previous,
    }
    with client(port) as one:
        if not stream:
            answer = one.responses.create(**asked)
            assert answer.previous_response_id == previous
            return str(answer.id)
        events = list(one.responses.create(**asked, stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete")
    return str(events[-1].response.id)


def say_on(port: int, response: str) -> None:
    say(port, response, stream=False)


def read(port: int, response: str) -> None:
    with client(port) as one:
        one.responses.retrieve(response)


def maker_of(response: str, nodes: list[Node]) -> Node:
    url = "http://127.0.0.1:{}/v1/responses/{}"
    [owner] = [node for node in nodes if httpx.get(url.format(node.port, response)).status_code == 200]
    return owner


def converse(ports: list[int], number: int) -> str:
    previous = None
    for turn in range(3):
        previous = say(ports[(number + turn) % len(ports)], previous, stream=number % 2 == 0)
    assert previous is not None
    return previous


def why_missed(call: Callable[[int, str], object], port: int, response: str) -> openai.NotFoundError:
    """A kept connection of what was killed may still be written to: whether that was heard nobody knows, and the client is told so."""
    for _ in range(3):
        try:
            call(port, response)
        except openai.NotFoundError as missed:
            return missed
        except openai.InternalServerError as unknown:
            if unknown.status_code != 502:
                raise
    raise AssertionError("it was not missed")


def test_vllms_stored_responses_are_found_by_every_router_and_missed_with_a_remedy_D34(
    tmp_path: Path, registry: Registry
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    top = {"registry_url": registry.url}
    with running(tmp_path / "a", name="a", top=top) as one, running(tmp_path / "b", name="b", top=top) as two:
        nodes = [one, two]
        for node in nodes:
            node.backend = vllm.backend(node.port)
            node.backend["env"] = {**node.backend["env"], **STORES}
            node.start()
        for node in nodes:
            node.ready(START_S)
        first, second = free_port(), free_port()
        with router(tmp_path, registry.url, second):
            with router(tmp_path, registry.url, first):
                ended = [converse([first, second], number) for number in range(8)]
                assert {maker_of(response, nodes).name for response in ended} == {"a", "b"}
                background = {"model": "tiny", "input": "hello", "max_output_tokens": 3000, "background": True}
                with client(first) as here, client(second) as there:
                    begun = here.responses.create(**background, extra_body={"ignore_eos": True})  # type: ignore[call-overload]  # a plain dict
                    assert there.responses.cancel(begun.id).status == "cancelled"
                    assert here.responses.retrieve(begun.id).status == "cancelled"
            with router(tmp_path, registry.url, first):
                for response in ended:
                    say_on(first, response)
                makers = {response: maker_of(response, nodes) for response in ended}
                response, owner = next(iter(makers.items()))
                family = owner.processes()
                for pid in family:
                    os.kill(pid, signal.SIGKILL)
                until("its end", lambda: not alive(family))
                for port in (first, second):
                    for call in (say_on, read):
                        missed = why_missed(call, port, response)
                        assert missed.code == "response_not_found"
                        assert f"'{response}'" in missed.message
                        assert "send the whole conversation in 'input'" in missed.message
                other = next(response for response, maker in makers.items() if maker is not owner)
                say(first, other, stream=True)
