"""Requests of Anthropic's Messages API as requests for chat completions."""

import json
from typing import Any

import pytest

from router.facts import BadBody
from router.messages.request import REFUSED, to_chat

HELLO = {"role": "user", "content": "hi"}
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}


def chat(**members: Any) -> dict[str, Any]:
    body = {"model": "m", "max_tokens": 8, "messages": [HELLO], **members}
    return dict(json.loads(to_chat(json.dumps(body).encode()).body))


def said(*content: Any, role: str = "user") -> list[Any]:
    return list(chat(messages=[{"role": role, "content": list(content)}, HELLO])["messages"][:-1])


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"temperature": 0.1, "top_p": 0.5, "top_k": 3}, {"temperature": 0.1, "top_p": 0.5, "top_k": 3}),
        ({"chat_template_kwargs": {"a": 1}}, {"chat_template_kwargs": {"a": 1}}),
        ({"stop_sequences": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stop_sequences": []}, {}),
        ({"metadata": {"user_id": "u"}}, {"user": "u"}),
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"stream": False}, {}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "service_tier": "auto", "betas": ["x"]}, {}),
        ({"cache_control": {"type": "ephemeral"}, "container": None, "mcp_servers": [], "n": 1}, {}),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, {"tool_choice": "auto", "parallel_tool_calls": False}),
        ({"tool_choice": {"type": "any", "disable_parallel_tool_use": False}}, {"tool_choice": "required"}),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        ({"tool_choice": {"type": "tool", "name": "f"}}, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        ({"tools": [{"type": "custom", "name": "f", "input_schema": {}, "strict": True, "cache_control": {}}]},
         {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}]}),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "high"}),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
         {"response_format": {"type": "json_schema", "json_schema": {"name": "output", "schema": {"type": "object"}, "strict": True}}}),
    ],
)  # fmt: skip
def test_members_become_those_of_chats(asked: dict[str, Any], expected: dict[str, Any]) -> None:
    assert chat(**asked) == {"model": "m", "max_tokens": 8, "messages": [HELLO], **expected}


def test_system_is_the_first_message_without_what_is_new_in_every_request() -> None:
    assert chat(system="a")["messages"] == [{"role": "system", "content": "a"}, HELLO]
    blocks = [text("x-anthropic-billing-header: cch=1"), text("a", cache_control={"type": "ephemeral"}), text("b")]
    assert chat(system=blocks)["messages"] == [{"role": "system", "content": "a\nb"}, HELLO]
    assert chat(system=blocks[:1])["messages"] == chat(system="")["messages"] == [HELLO]
    assert said(text("now"), role="system") == [{"role": "system", "content": "now"}]


def test_text_alone_is_a_string_and_with_an_image_it_is_parts() -> None:
    assert said(text("a"), text("b")) == [{"role": "user", "content": "a\nb"}]
    assert said(text("a"), PNG) == [{"role": "user", "content": [text("a"), PNG_PART]}]
    url = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    assert said(url) == [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}]


def test_results_of_tools_come_first_and_their_images_with_what_the_user_says() -> None:
    results = (
        {"type": "tool_result", "tool_use_id": "1"},
        text("look"),
        {"type": "tool_result", "tool_use_id": "2", "is_error": True, "content": "gone"},
        {"type": "tool_result", "tool_use_id": "3", "content": [text("a"), PNG, text("b")]},
    )
    assert said(*results) == [
        {"role": "tool", "tool_call_id": "1", "content": ""},
        {"role": "tool", "tool_call_id": "2", "content": "Error: gone"},
        {"role": "tool", "tool_call_id": "3", "content": "a\nb"},
        {"role": "user", "content": [text("look"), PNG_PART]},
    ]


def test_an_answer_of_before_goes_back_with_its_calls_and_with_thoughts_of_the_server_itself() -> None:
    call = {"type": "tool_use", "id": "1", "name": "f", "input": {"ü": 1.5}}
    called = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"ü":1.5}'}}]
    assert said(call, role="assistant") == [{"role": "assistant", "content": None, "tool_calls": called}]
    for signature in ("reasoning", "reasoning_content"):
        thought = {"type": "thinking", "thinking": "hm", "signature": signature}
        told = said(thought, text("a"), text("b"), call, role="assistant")
        assert told == [{"role": "assistant", "content": "ab", signature: "hm", "tool_calls": called}]
    foreign = {"type": "thinking", "thinking": "hm", "signature": "EqQB"}, {"type": "redacted_thinking", "data": "x"}
    assert said(*foreign, text("a"), role="assistant") == [{"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        *[({name: [1]}, f"{name}: this cannot be translated") for name in REFUSED],
        ({"max_tokens": None}, "Expected `int`, got `null` - at `$.max_tokens`"),
        ({"max_tokens": True}, "Expected `int`, got `bool` - at `$.max_tokens`"),
        ({"max_tokens": 0}, "Expected `int` >= 1 - at `$.max_tokens`"),
        ({"messages": None}, "Expected `array`, got `null` - at `$.messages`"),
        ({"messages": ["a"]}, "Expected `object`, got `str` - at `$.messages[0]`"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "Invalid value 'tool' - at `$.messages[0].role`"),
        ({"messages": [{"role": "user", "content": None}]}, "Expected `str | array`, got `null` - at `$.messages[0].content`"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "missing required field `type` - at `$.messages[0].content[0]`"),
        ({"messages": [{"role": "user", "content": [text("a"), {"type": "document"}]}]},
         "Invalid value 'document' - at `$.messages[0].content[1].type`"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]},
         "Invalid value 'file' - at `$.messages[0].content[0].source.type`"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "search_result"}]}]}]},
         "Invalid value 'search_result' - at `$.messages[0].content[0].content[0].type`"),
        ({"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}, HELLO]}, "Invalid value 'server_tool_use'"),
        ({"messages": [HELLO, {"role": "assistant", "content": "Once"}]}, "an answer that the model is to continue"),
        ({"system": [PNG]}, "Invalid value 'image' - at `$.system[0].type`"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "'web_search_20250305' - at `$.tools[0].type`"),
        ({"tools": [{}]}, "missing required field `name` - at `$.tools[0]`"),
        ({"tool_choice": {"type": "some"}}, "Invalid enum value 'some' - at `$.tool_choice.type`"),
        ({"tool_choice": {"type": "tool"}}, "the type `tool` needs a `name` - at `$.tool_choice`"),
        ({"tool_choice": "auto"}, "Expected `object | null`, got `str` - at `$.tool_choice`"),
        ({"stop_sequences": [1]}, "Expected `str`, got `int` - at `$.stop_sequences[0]`"),
        ({"metadata": {"user_id": 1}}, "Expected `str | null`, got `int` - at `$.metadata.user_id`"),
        ({"output_config": {"verbosity": 1}}, "unknown field `verbosity` - at `$.output_config`"),
        ({"output_config": {"format": {"type": "grammar"}}}, "Invalid value 'grammar' - at `$.output_config.format.type`"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_by_its_name(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(BadBody) as caught:
        chat(**asked)
    assert message in str(caught.value)


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadBody):
        to_chat(body)
