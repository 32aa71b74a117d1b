"""kill -9 of one of two real engines in the middle of a stream at temperature 0, which another one goes on with (docs/streams.md).

llama.cpp's model has random weights, and is biased to pieces of words that read back as the tokens that were written (`CANONICAL`), or
that may not (`LETTERS`). Its logits are as flat as no trained model's, so that roundings tell: whether a whole text is that of
an undisturbed stream is printed (`pytest -s`), and only what docs/streams.md promises is asserted.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.babysitter.real import until
from tests.e2e.fleet import tell
from tests.engines.harness import EngineNode, Fleet, engine_node, fleet

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MODEL = "llama-3.1-8b"
"""As config/examples/llama-cpp.toml names it."""
TOKENS = 1500
BEFORE = 200
"""Events before the kill."""
CANONICAL = [vowel + letter for vowel in "aeiou" for letter in "nrstl"]
"""All merges of tests/engines/tiny_gguf.py: `an` is one token, whoever reads it."""
LETTERS = [*CANONICAL, *"aeiounrstl"]
"""`a` and `n` are two tokens when they are written, and one when they are read again."""


class Told:
    """One stream."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.ended = False
        self.before_seam = ""
        """The text before the first comment."""

    def take(self, line: str) -> None:
        if line.startswith(":"):
            self.before_seam = self.text
            self.notes.append(line)
        elif line == "data: [DONE]":
            self.ended = True
        elif line:
            self.events.append(json.loads(line.removeprefix("data: ")))

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [choice for event in self.events for choice in event["choices"]]

    @property
    def text(self) -> str:
        said = [one.get("delta", one) for one in self.choices]
        return "".join(one.get("content") or one.get("text") or "" for one in said)

    @property
    def prompt_tokens(self) -> list[int]:
        return [event["usage"]["prompt_tokens"] for event in self.events if event.get("usage")]

    @property
    def shape(self) -> tuple[object, ...]:
        """All that must be as in an undisturbed stream, but for the text and the prompt's tokens."""
        usage = [event["usage"] for event in self.events if event.get("usage")]
        counts = [one["completion_tokens"] for one in usage]
        roles = [one["delta"]["role"] for one in self.choices if one.get("delta", {}).get("role")]
        ends = [one["finish_reason"] for one in self.choices if one["finish_reason"]]
        return self.ended, len({event["id"] for event in self.events}), counts, roles, ends


Pair = tuple[Fleet, list[EngineNode]]


@contextmanager
def two_of(engine: str, model: str, folder: Path) -> Iterator[Pair]:
    """Two engines of one model, each with its babysitter, behind a router that rescues."""
    (folder / "router.toml").write_text(f'[models."{model}"]\nrescue = true\n')
    with ExitStack() as stack:
        where = stack.enter_context(fleet(folder, "--config", str(folder / "router.toml")))
        nodes = [
            stack.enter_context(engine_node(engine, folder / name, registry=where.registry.url, name=name))
            for name in ("one", "other")
        ]
        for node in nodes:
            node.start()
        yield where, nodes


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with two_of("llama_cpp", MODEL, tmp_path_factory.mktemp("rescue")) as made:
        yield made


@pytest.fixture(scope="module")
def vllm_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with two_of("vllm", "tiny", tmp_path_factory.mktemp("rescue")) as made:
        yield made


def body(path: str, prompt: str, alphabet: list[str], said: str = "") -> dict[str, Any]:
    """A request at temperature 0, or one that continues its answer, in the docs' words."""
    messages = [{"role": "user", "content": prompt}]
    if said:
        messages.append({"role": "assistant", "content": said})
    asked = {"messages": messages} if path == CHAT else {"prompt": prompt + said}
    goes_on = {"continue_final_message": True, "add_generation_prompt": False} if said and path == CHAT else {}
    options = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": TOKENS}
    # A cache has what was written token by token, which rounds otherwise than a prompt that is read at once.
    flat = {"temperature": 0, "logit_bias": [[piece, 100] for piece in alphabet], "cache_prompt": False}
    return {**asked, **goes_on, **options, **flat}


def ask(url: str, asked: dict[str, Any], at_event: Callable[[], object] = str) -> Told:
    """One stream; `at_event` is called after `BEFORE` events."""
    told, called = Told(), False
    with httpx.stream("POST", url, json=asked, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            told.take(line)
            if not called and len(told.events) == BEFORE:
                called = True
                at_event()
    return told


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("alphabet", [CANONICAL, LETTERS], ids=["canonical", "letters"])
@pytest.mark.parametrize("prompt", ["the quick brown fox", "dear all"])
def test_a_stream_goes_on_at_another_llama_cpp_A22(pair: Pair, path: str, alphabet: list[str], prompt: str) -> None:
    told, undisturbed = goes_on(pair, path, lambda said: body(path, prompt, alphabet, said))
    assert len(undisturbed.text) > TOKENS / 2
    assert told.prompt_tokens == undisturbed.prompt_tokens or alphabet is LETTERS


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_stream_goes_on_at_another_vllm_A22(vllm_pair: Pair, path: str) -> None:
    """Its words are whatever pieces the random weights choose, which may read back as other tokens."""

    def asked(said: str) -> dict[str, Any]:
        like_the_others = body(path, "the quick brown fox", [], said)
        del like_the_others["logit_bias"], like_the_others["cache_prompt"]
        return {**like_the_others, "model": "tiny", "max_tokens": 600, "ignore_eos": True}

    goes_on(vllm_pair, path, asked)


def goes_on(pair: Pair, path: str, asked: Callable[[str], dict[str, Any]]) -> tuple[Told, Told]:
    """A stream whose engine is killed, and an undisturbed one; `asked` makes the body that goes on from what was said."""
    where, nodes = pair
    for node in nodes:
        node.ready()
    until("both take requests", lambda: all(where.service(one.port).get("standing") == "fresh" for one in nodes), 60)
    killed: list[EngineNode] = []

    def kill() -> None:
        killed.append(next(node for node in nodes if where.service(node.port)["in_flight"]))
        os.kill(killed[0].ready(), signal.SIGKILL)

    undisturbed = ask(where.url + path, asked(""))
    told = ask(where.url + path, asked(""), kill)
    (other,) = (node for node in nodes if node not in killed)
    assert told.notes == [f": continued on {other.name}-server"]
    assert told.shape == undisturbed.shape
    before = told.before_seam
    assert undisturbed.text.startswith(before)
    assert 0 < len(before) < len(told.text)
    expected = before + ask(other.url + path, asked(before)).text
    assert expected.startswith(told.text)  # it was told a `max_tokens` of its own
    tell(as_undisturbed=told.text == undisturbed.text, of_bytes=len(told.text), seam_at=len(before))
    return told, undisturbed
