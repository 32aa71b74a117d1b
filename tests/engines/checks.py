"""What is asked of every engine, through the router and by official clients where there are such.

Each check fails with what the engine answered; the catalogue knows by that what an engine cannot do.
"""

import json
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx
import openai

from babysitter.engine_metrics import Work, parse_work
from router.policy.usage import usage_of
from tests.engines.harness import EngineNode, Fleet, until
from tests.router.fakes import request

ASK_S = 300.0
"""Of one request; only a failure reaches it."""
QUICK = {"interval_s": 0.5, "generate_interval_s": 1, "generate_timeout_s": 3, "timeout_s": 2}
"""Rules of a babysitter that need little waiting for; an engine is not restarted for being slow on a busy machine."""
STOP_S = 1.0
"""From a client's leaving to the engine's idleness."""
TRIES = 5
LONG = "the quick brown fox " * 400
"""More than the context of every tiny model."""
SAID: list[dict[str, Any]] = [{"role": "user", "content": "Say something about the sea."}]
SHORT: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
TOOL = {
    "type": "function",
    "function": {
        "name": "pick",
        "description": "picks a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@dataclass
class Up:
    """A running engine behind a babysitter, and a router that knows it."""

    node: EngineNode
    fleet: Fleet
    start: list[tuple[str, bool, bool]] = field(default_factory=list)
    """While it started: the babysitter's word, whether the router listed it, and then whether a request succeeded."""

    @property
    def model(self) -> str:
        """As the engine tells it."""
        return self.node.model

    def client(self) -> openai.OpenAI:
        """OpenAI's, at the router."""
        return openai.OpenAI(base_url=f"{self.fleet.url}/v1", api_key="none", max_retries=0, timeout=ASK_S)

    def post(self, path: str, **body: Any) -> Any:
        """The answer's JSON, by way of the router; fails unless it is 200."""
        return json.loads(self.read(path, **body))

    def read(self, path: str, **body: Any) -> str:
        """The answer, by way of the router; fails unless it is 200."""
        return answered(httpx.post(f"{self.fleet.url}{path}", json={"model": self.model, **body}, timeout=ASK_S))

    def work(self) -> Work:
        """What the engine's own metrics tell now."""
        text = answered(httpx.get(f"{self.node.url}/metrics", timeout=ASK_S))
        work = parse_work(text)
        assert work is not None, text[:300]
        return work

    def reload(self, **probes: Any) -> None:
        """Have its babysitter take these rules while it serves."""
        before = self.node.log().count("config.reloaded")
        self.node.probes = {**QUICK, **probes}
        assert self.node.config.exists()  # written anew
        self.node.babysitters[-1].send_signal(signal.SIGHUP)
        until("taken over", lambda: self.node.log().count("config.reloaded") > before)


def answered(answer: httpx.Response) -> str:
    """Its text."""
    assert answer.status_code == httpx.codes.OK, f"{answer.url.path}: status {answer.status_code} {answer.text[:300]}"
    return answer.text


def can(up: Up, call: Callable[[openai.OpenAI], Any]) -> Any:
    """What OpenAI's client gets; its error is this check's."""
    try:
        with up.client() as client:
            return call(client)
    except openai.APIStatusError as error:
        raise AssertionError(f"status {error.status_code} {error.response.text[:300]}") from error


def models(up: Up) -> None:
    listed = can(up, lambda client: [model.id for model in client.models.list()])
    assert listed == [up.model]


def chat(up: Up) -> None:
    asked: Any = {"model": up.model, "messages": SAID, **SHORT}
    said = can(up, lambda client: client.chat.completions.create(**asked))
    assert said.choices[0].finish_reason in ("length", "stop")
    assert said.choices[0].message.content


def chat_stream(up: Up) -> None:
    asked: Any = {"model": up.model, "messages": SAID, "stream": True, **SHORT}
    parts = can(up, lambda client: list(client.chat.completions.create(**asked)))
    assert len(parts) > 2, parts
    assert [choice.finish_reason for part in parts for choice in part.choices if choice.finish_reason]


def completions(up: Up) -> None:
    said = can(up, lambda client: client.completions.create(model=up.model, prompt="hello", **SHORT))
    assert said.choices[0].text


def embeddings(up: Up) -> None:
    said = can(up, lambda client: client.embeddings.create(model=up.model, input=["a", "b"]))
    assert [len(one.embedding) > 8 for one in said.data] == [True, True]


def usage(up: Up) -> None:
    """In whole answers and at the end of streams, as the router reads it."""
    whole = up.post("/v1/chat/completions", messages=SAID, **SHORT)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    stream = up.read("/v1/chat/completions", messages=SAID, **SHORT, **options)
    told = whole["usage"]["completion_tokens"]
    assert told > 0
    for raw in (json.dumps(whole), stream):
        read = usage_of(raw.encode())
        assert read is not None, raw[-600:]
        assert (read.prompt, read.written) == (whole["usage"]["prompt_tokens"], told)


def usage_of_embeddings(up: Up) -> None:
    assert up.post("/v1/embeddings", input=["a", "b"])["usage"]["prompt_tokens"] > 0


def rerank(up: Up) -> None:
    """As Cohere's clients ask: each document once, by its index, with a number; best first is the engine's own affair."""
    ranked = up.post("/v1/rerank", query="a", documents=["b", "c d", "e"])["results"]
    assert sorted(one["index"] for one in ranked) == [0, 1, 2]
    assert all(isinstance(one["relevance_score"], float) for one in ranked)


def tool_calls(up: Up) -> None:
    """One is demanded; in a whole answer and in a stream."""
    asked = {"messages": SAID, "tools": [TOOL], "tool_choice": "required", "max_tokens": 400, "temperature": 0}
    said = up.post("/v1/chat/completions", **asked)["choices"][0]["message"]
    assert said.get("tool_calls"), f"no tool call: {said}"
    assert said["tool_calls"][0]["function"]["name"] == "pick"
    stream = up.read("/v1/chat/completions", **asked, stream=True)
    assert '"tool_calls"' in stream, stream[-600:]


def tool_results(up: Up) -> None:
    """A conversation in which a tool was called goes on."""
    call = {"id": "call_1", "type": "function", "function": {"name": "pick", "arguments": '{"city": "Rome"}'}}
    said = [*SAID, {"role": "assistant", "content": "", "tool_calls": [call]}]
    result = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    whole = up.post("/v1/chat/completions", messages=[*said, result], tools=[TOOL], **SHORT)
    assert whole["choices"][0]["message"]["content"]


def logprobs(up: Up) -> None:
    asked = {"messages": SAID, "logprobs": True, "top_logprobs": 3, **SHORT}
    told = up.post("/v1/chat/completions", **asked)["choices"][0].get("logprobs")
    assert told, "no logprobs in the answer"
    assert len(told["content"][0]["top_logprobs"]) == 3


def too_long_is_refused(up: Up) -> None:
    """With the status by which clients know that it is theirs to mend."""
    body = {"model": up.model, "messages": [{"role": "user", "content": LONG}], **SHORT}
    answer = httpx.post(f"{up.fleet.url}/v1/chat/completions", json=body, timeout=ASK_S)
    assert answer.status_code == httpx.codes.BAD_REQUEST, f"status {answer.status_code} {answer.text[:200]}"
    assert "context" in answer.text


def too_long_embedding_is_refused(up: Up) -> None:
    answer = httpx.post(f"{up.fleet.url}/v1/embeddings", json={"model": up.model, "input": LONG}, timeout=ASK_S)
    assert answer.status_code in (400, 413, 500), f"status {answer.status_code} {answer.text[:200]}"


def responses(up: Up) -> None:
    said = can(
        up, lambda client: client.responses.create(model=up.model, input="hello", max_output_tokens=16, temperature=0)
    )
    assert not isinstance(said, str), f"a stream that nobody asked for: {said[:100]}"
    assert said.output_text


def responses_stream(up: Up) -> None:
    asked: Any = {"model": up.model, "input": "hello", "max_output_tokens": 16, "temperature": 0, "stream": True}
    kinds = [part.type for part in can(up, lambda client: list(client.responses.create(**asked)))]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete"), kinds


def messages(up: Up) -> None:
    """Anthropic's call, by its own client, whole and as a stream."""
    asked: Any = {"model": up.model, "messages": SAID, "max_tokens": 8, "extra_body": {"temperature": 0}}
    try:
        with anthropic.Anthropic(base_url=up.fleet.url, api_key="none", max_retries=0, timeout=ASK_S) as client:
            said = client.messages.create(**asked)
            events = [event.type for event in client.messages.create(**asked, stream=True)]
    except anthropic.APIStatusError as error:
        raise AssertionError(f"status {error.status_code} {error.response.text[:300]}") from error
    assert said.usage.output_tokens > 0
    assert (events[0], events[-1]) == ("message_start", "message_stop"), events


def metrics(up: Up) -> None:
    """Running and waiting requests, told by the engine and by its babysitter's report."""
    assert up.work().running == 0
    until("its work is reported", lambda: up.node.report().get("running") is not None)


def cancellation(up: Up) -> None:
    """A client that goes away from a stream: the engine has stopped 1 s later."""
    _leave(up, STOP_S, stream=True)


def cancellation_before_the_answer(up: Up) -> None:
    """A client that goes away while it waits for a whole answer."""
    quiet_s = up.node.engine.quiet_s
    if quiet_s:
        up.reload(interval_s=4 * quiet_s)
    _leave(up, STOP_S + 10 * quiet_s, stream=False, look_s=4 * quiet_s)


def _leave(up: Up, stop_s: float, *, stream: bool, look_s: float = 0.0) -> None:
    """The best of some tries counts: on a machine with other work a second may pass before anybody is asked.

    Whoever looks at the engine's metrics, we and its babysitter, leaves it alone for `look_s` in between.
    """

    def is_idle() -> bool:
        time.sleep(look_s)
        return not up.work().running

    up.work()
    up.post("/v1/completions", prompt="hello", max_tokens=1)
    body = {"model": up.model, "prompt": "hello", "stream": stream, "temperature": 0, **up.node.engine.endless}
    raw = request(json.dumps(body).encode(), "/v1/completions", "connection: keep-alive\r\n")
    took_s: list[float] = []
    while not took_s or (min(took_s) > stop_s and len(took_s) < TRIES):
        with socket.create_connection(("127.0.0.1", up.fleet.router_port)) as client:
            client.sendall(raw)
            until("it works", lambda: up.work().running)
        gone = time.monotonic()
        until("it is idle", is_idle, ASK_S)
        took_s.append(time.monotonic() - gone)
    assert min(took_s) <= stop_s, f"stopped only after {min(took_s):.1f} s"


CHECKS: dict[str, Callable[[Up], None]] = {
    check.__name__: check
    for check in (
        models, chat, chat_stream, completions, embeddings, usage, usage_of_embeddings, rerank, tool_calls, tool_results, logprobs,
        too_long_is_refused, too_long_embedding_is_refused, responses, responses_stream, messages, metrics, cancellation,
        cancellation_before_the_answer,
    )
}  # fmt: skip
