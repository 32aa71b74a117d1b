"""Streams of chat completions as Anthropic's events."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.messages import stream as module
from router.messages.request import Chat
from router.messages.stream import MessageStream
from router.proxy.chunked import BadChunk

CHAT = Chat(b"", "m", ("X",))


def event(finish_reason: str | None = None, usage: Any = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"id": "c", "choices": [choice], "usage": usage}).encode() + b"\n\n"


def call(index: int | None, arguments: str, **more: str) -> dict[str, Any]:
    number = {} if index is None else {"index": index}
    name = {"name": more.pop("name")} if "name" in more else {}
    return {**number, **more, "function": {**name, "arguments": arguments}}


DONE = b"data: [DONE]\n\n"
LONG = (
    b": comment\r\nid: 7\n\n"
    + event(role="assistant", content="")
    + event(reasoning_content="größer ")
    + event(reasoning_content="😀")
    + event(content="a\r\nb").replace(b"\n\n", b"\r\n\r\n")
    + event(content=[{"type": "text", "text": "c"}])
    + event(tool_calls=[call(0, "", id="1", name="f"), call(1, '{"b"', id="2", name="g")])
    + event(tool_calls=[call(0, '{"a":')])
    + event(tool_calls=[call(1, ":2}"), call(0, "1}")])
    + event("tool_calls")
    + b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
    + DONE
)


def events(*pieces: bytes) -> list[dict[str, Any]]:
    stream = MessageStream(CHAT, "r")
    out = b"".join(map(stream.feed, pieces)) + stream.end()
    told = []
    for block in out.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        content = json.loads(data.removeprefix("data: "))
        assert name == f"event: {content['type']}"
        told.append(content)
    return told


def blocks(told: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Type and content of each block; checks that they follow each other, each begun, filled and ended."""
    found: list[tuple[str, str]] = []
    is_open = False
    for one in told:
        kind = one["type"]
        if kind == "content_block_start":
            assert not is_open
            assert one["index"] == len(found)
            is_open = True
            found.append((one["content_block"]["type"], ""))
        elif kind == "content_block_delta":
            assert is_open
            assert one["index"] == len(found) - 1
            delta = one["delta"]
            value = delta.get("text") or delta.get("thinking") or delta.get("partial_json") or ""
            found[-1] = (found[-1][0], found[-1][1] + value)
        elif kind == "content_block_stop":
            assert is_open
            assert one["index"] == len(found) - 1
            is_open = False
    assert not is_open
    return found


def test_events_come_in_anthropics_order_whatever_the_servers() -> None:
    told = events(LONG)
    assert blocks(told) == [
        ("thinking", "größer 😀"),
        ("text", "a\r\nbc"),
        ("tool_use", '{"a":1}'),
        ("tool_use", '{"b":2}'),
    ]
    assert [one["type"] for one in told[:2]] == ["message_start", "ping"]
    assert told[-2] == {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"input_tokens": 5, "output_tokens": 2},
    }
    assert told[-1] == {"type": "message_stop"}
    starts = [one["content_block"] for one in told if one["type"] == "content_block_start"]
    assert starts[2:] == [
        {"type": "tool_use", "id": "1", "name": "f", "input": {}},
        {"type": "tool_use", "id": "2", "name": "g", "input": {}},
    ]


@given(st.lists(st.integers(0, len(LONG)), max_size=30))
def test_however_the_stream_is_cut_the_events_are_the_same(cuts: list[int]) -> None:
    borders = [0, *sorted(cuts), len(LONG)]
    assert events(*[LONG[a:b] for a, b in itertools.pairwise(borders)]) == events(LONG)


def test_byte_for_byte_is_a_cut_as_well() -> None:
    assert events(*[bytes([byte]) for byte in LONG]) == events(LONG)


_deltas = st.one_of(
    st.builds(lambda text: {"content": text}, st.text()),
    st.builds(lambda text: {"reasoning": text}, st.text()),
    st.builds(lambda at, text: {"tool_calls": [call(at, text, id=f"{at}", name="f")]}, st.integers(0, 3), st.text()),
)


@given(st.lists(_deltas, max_size=20))
def test_no_order_of_pieces_breaks_the_order_of_blocks(deltas: list[dict[str, Any]]) -> None:
    try:
        told = events(*[event(**delta) for delta in deltas], event("stop"), DONE)
    except BadChunk as error:
        assert "goes on after it ended" in str(error)  # noqa: PT017 - one reason only
        return
    found = blocks(told)
    texts = "".join(text for kind, text in found if kind == "text")
    assert texts == "".join(delta.get("content", "") for delta in deltas)
    assert told[-1]["type"] == "message_stop"


@pytest.mark.parametrize(
    ("reason", "extra", "expected"),
    [
        ("stop", {}, ("end_turn", None)),
        ("length", {"stop_reason": "X"}, ("max_tokens", None)),
        ("content_filter", {}, ("refusal", None)),
        ("stop", {"stop_reason": "X"}, ("stop_sequence", "X")),
        ("stop", {"matched_stop": "X"}, ("stop_sequence", "X")),
        ("stop", {"stop_reason": 128009}, ("end_turn", None)),
        ("stop", {"stop_reason": "<|im_end|>"}, ("end_turn", None)),
        ("odd", {}, ("end_turn", None)),
    ],
)
def test_the_reason_of_the_end_is_told_in_anthropics_words(
    reason: str, extra: dict[str, Any], expected: tuple[str, str | None]
) -> None:
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": reason, **extra}
    told = events(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n" + DONE)
    assert tuple(told[-2]["delta"].values()) == expected


def test_an_empty_answer_has_one_empty_text() -> None:
    assert blocks(events(event("stop"), DONE)) == blocks(events(DONE)) == [("text", "")]


def test_calls_without_numbers_or_ids_get_them() -> None:
    told = events(
        event(tool_calls=[call(None, "{}", id="1", name="f")]),
        event(tool_calls=[call(None, "{", id="2", name="g")]),
        event(tool_calls=[call(None, "}")]),
        DONE,
    )
    assert blocks(told) == [("tool_use", "{}"), ("tool_use", "{}")]
    unnamed = events(event(tool_calls=[call(0, "{}", name="f")]), DONE)
    assert unnamed[2]["content_block"]["id"] == "toolu_r_0"


@pytest.mark.parametrize(
    ("data", "status", "kind"),
    [
        (b'data: {"error":{"message":"m","code":400}}\n\n', 400, "invalid_request_error"),
        (b'data: {"object":"error","message":"m","code":503}\n\n', 503, "overloaded_error"),
        (b'event: error\ndata: {"message":"m"}\n\n', 400, "api_error"),
        (b"event: error\ndata: m\n\n", 400, "api_error"),
    ],
)
def test_the_engines_own_error_is_the_last_event(data: bytes, status: int, kind: str) -> None:
    stream = MessageStream(CHAT, "r")
    out = stream.feed(event(content="a") + data + event(content="b") + DONE) + stream.end()
    error = json.loads(out.split(b"data: ")[-1])
    assert (error["error"]["type"], error["error"]["message"], stream.error_status) == (kind, "m", status)


@pytest.mark.parametrize(
    "data",
    [
        b"data: <html>\n\n",
        b'data: {"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{}"}}]}}]}\n\n' + DONE,
        b"data: " + b"x" * 2000,
        b"data: x\n" * 300,
        b"".join(event(tool_calls=[call(at, "{}", id=f"{at}", name="f")]) for at in range(30)),
    ],
    ids=["no JSON", "no name", "a long line", "many lines", "many calls"],
)
def test_what_is_no_such_stream_or_too_much_of_one_is_refused(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(module, "EVENT_LIMIT_BYTES", 1000)
    with pytest.raises(BadChunk):
        MessageStream(CHAT, "r").feed(data)
