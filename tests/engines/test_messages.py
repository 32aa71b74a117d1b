"""llama.cpp and vLLM have the Messages API: what they answer themselves, beside what they answer to translated messages.

Without chance (temperature 0) the same prompt gives the same text: equal answers show that the translated request led to the
very prompt that the engine makes of the original one.
"""

import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from router.policy.models import ModelRule, ModelRules
from tests.engines import llama_cpp, vllm
from tests.engines.harness import START_S
from tests.ports import free_port
from tests.router.conftest import MakePlane
from tests.router.fakes import Plane

pytestmark = [pytest.mark.world, pytest.mark.timeout(1800)]
WEATHER: Any = {
    "name": "weather",
    "description": "of a town",
    "strict": True,
    "input_schema": {
        "type": "object",
        "properties": {"town": {"type": "string", "enum": ["Ulm"]}},
        "required": ["town"],
        "additionalProperties": False,
    },
}
CALLED: Any = [
    {"role": "user", "content": [{"type": "text", "text": "Is it raining"}, {"type": "text", "text": "in Ulm?"}]},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"town": "Ulm"}},
        ],
    },
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "rain"}]}],
    },
]
ASKED: dict[str, dict[str, Any]] = {
    "plain": {"messages": [{"role": "user", "content": "hello"}]},
    "system": {"messages": [{"role": "user", "content": "hello"}], "system": [{"type": "text", "text": "be short"}]},
    "stops": {"messages": [{"role": "user", "content": "hello"}], "stop_sequences": ["e", "a", " "]},
    "talk": {"messages": CALLED, "tools": [WEATHER]},
}


@pytest.fixture(scope="module", params=["llama_cpp", "vllm"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Its name and its port."""
    if request.param == "llama_cpp":
        with llama_cpp.serving(n_parallel=1, use_jinja=True) as running:
            yield request.param, running.port
        return
    port = free_port()
    backend = vllm.backend(port, "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    log = tmp_path_factory.mktemp("vllm") / "log"
    environment = {**os.environ, **backend["env"]}
    with (
        log.open("wb") as out,
        subprocess.Popen([backend["command"], *backend["args"]], env=environment, stdout=out, stderr=out) as process,
    ):
        try:
            _await_ready(port, process, log)
            yield request.param, port
        finally:
            process.terminate()


def _await_ready(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"vLLM is not ready; its log ends with:\n{log.read_text(errors='replace')[-2000:]}")


@pytest.fixture
async def claudes(planes: MakePlane, engine: tuple[str, int]) -> AsyncIterator[dict[str, anthropic.AsyncAnthropic]]:
    """Clients whose messages go to the engine as they are, and translated."""
    clients: dict[str, anthropic.AsyncAnthropic] = {}
    for way in ("native", "translate"):
        plane: Plane = await planes(
            first_byte_timeout_s=120.0, total_timeout_s=240.0, rules=ModelRules(rules={"*": ModelRule(messages=way)})
        )
        plane.route(engine[1], models=("tiny",))
        clients[way] = anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{plane.port}", api_key="k", max_retries=0)
    yield clients
    for client in clients.values():
        await client.close()


def seen(message: anthropic.types.Message) -> dict[str, Any]:
    """What must not differ; ids do, and which prompt was in the cache before."""
    told = message.to_dict()
    usage: Any = told["usage"]
    blocks: Any = told["content"]
    return {
        "content": [
            {name: value for name, value in block.items() if name not in ("id", "signature")} for block in blocks
        ],
        "stop": (told["stop_reason"], told.get("stop_sequence")),
        "prompt": usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0),
        "output": usage["output_tokens"],
        "rest": (told["type"], told["role"], told["model"]),
    }


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ASKED)
async def test_a_translated_message_is_answered_as_the_engine_answers_it_itself(
    claudes: dict[str, anthropic.AsyncAnthropic], engine: tuple[str, int], name: str, *, stream: bool
) -> None:
    told = {}
    asked: Any = {"model": "tiny", "max_tokens": 16, "extra_body": {"temperature": 0.0}, **ASKED[name]}
    for way, claude in claudes.items():
        if stream:
            async with claude.messages.stream(**asked) as events:
                told[way] = seen(await events.get_final_message())
        else:
            told[way] = seen(await claude.messages.create(**asked))
    if (
        name == "stops" and engine[0] == "llama_cpp"
    ):  # it tells which text stopped it in its messages only, and calls that an `end_turn`
        assert [told[way].pop("stop")[0] for way in told] == ["end_turn"] * 2
    assert told["translate"] == told["native"]


@pytest.mark.parametrize("engine", ["vllm"], indirect=True)  # llama.cpp makes none where the template knows no tools
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_call_of_a_tool_is_translated_as_the_engine_does_it_itself(
    claudes: dict[str, anthropic.AsyncAnthropic], *, stream: bool
) -> None:
    """With chance: what a model of random weights says without it is blanks. The schema leaves one answer."""
    asked: Any = {"model": "tiny", "max_tokens": 500, "messages": [{"role": "user", "content": "hello"}]}
    asked |= {
        "tools": [WEATHER],
        "tool_choice": {"type": "tool", "name": "weather"},
        "extra_body": {"temperature": 1.0},
    }
    for claude in claudes.values():
        if stream:
            async with claude.messages.stream(**asked) as events:
                said = await events.get_final_message()
        else:
            said = await claude.messages.create(**asked)
        [block] = seen(said)["content"]
        assert block == {"type": "tool_use", "name": "weather", "input": {"town": "Ulm"}}
        assert said.stop_reason == "tool_use"


async def test_errors_are_told_as_the_engine_tells_them_itself(claudes: dict[str, anthropic.AsyncAnthropic]) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "word " * 9000}]}
    told = []
    for claude in claudes.values():
        with pytest.raises(anthropic.BadRequestError) as caught:
            await claude.messages.create(**asked)
        body: Any = caught.value.body
        told.append(body["error"])
    own, translated = told  # the engines' own types are others: llama.cpp answers in OpenAI's form on this path, too
    assert (translated["type"], translated["message"]) == ("invalid_request_error", own["message"])


async def test_tokens_are_counted_by_the_engine(claudes: dict[str, anthropic.AsyncAnthropic]) -> None:
    hello: Any = [{"role": "user", "content": "hello"}]
    assert (await claudes["native"].messages.count_tokens(model="tiny", messages=hello)).input_tokens > 0
    with pytest.raises(anthropic.NotFoundError):
        await claudes["translate"].messages.count_tokens(model="tiny", messages=hello)
