"""The pure parts of streams that survive: what may be continued, what is asked, and who may be asked."""

import json
from typing import Any

import pytest

from common.wire.hints import hints_of
from router.proxy.chunked import BadChunk
from router.streams.continuation import can_be_continued, continued
from router.streams.joined import Joined
from router.streams.kept import Kept, end_of_events
from router.streams.kinship import continues, lineages

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0.30, "max_tokens": 9}


def kept(*texts: str, chat: bool = True, **more: Any) -> Kept:
    made = Kept(chat=chat)
    for text in texts:
        said = {"delta": {"content": text}} if chat else {"text": text}
        made.take(json.dumps({"id": "a", "choices": [{"index": 0, **said}], **more}).encode())
    return made


def asked_next(body: dict[str, Any], said: Kept) -> Any:
    answer = continued(json.dumps(body).encode(), said)
    return None if answer is None else json.loads(answer)


@pytest.mark.parametrize(
    ("more", "may"),
    [
        ({}, True),
        ({"n": 1, "logprobs": False, "response_format": {"type": "text"}, "tools": [{"type": "function"}]}, True),
        ({"best_of": 2}, False),
        ({"logprobs": 0}, False),  # of completions: one for each token
        ({"response_format": {"type": "json_schema"}}, False),
        ({"structured_outputs": {"regex": "a"}}, False),
        ({"messages": []}, False),
        ({"messages": [{"role": "assistant", "content": "x"}], "continue_final_message": True}, True),
        ({"messages": [{"role": "assistant", "content": [{"type": "text"}]}], "continue_final_message": True}, False),
    ],
)
def test_what_may_be_continued_A22(more: dict[str, Any], *, may: bool) -> None:
    assert can_be_continued(json.dumps(ASKED | more).encode(), chat=True) is may


def test_completions_of_one_text_only_A22() -> None:
    for prompt, may in (("x", True), (["x"], False), ([1, 2], False)):
        assert can_be_continued(json.dumps({"prompt": prompt}).encode(), chat=False) is may
    assert not can_be_continued(b'{"prompt":', chat=False)


def test_what_is_asked_next_has_the_text_and_what_remains_of_every_limit_A22() -> None:
    body = ASKED | {"max_completion_tokens": 5, "min_tokens": 1, "seed": 7}
    assert asked_next(body, kept("a", " b")) == body | {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a b"}],
        "max_tokens": 7,
        "max_completion_tokens": 3,
        "min_tokens": 0,
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    assert asked_next(ASKED, kept()) == ASKED  # nothing was said: the same once more
    raw = continued(json.dumps(ASKED).encode(), kept("a"))
    assert raw is not None
    assert b'"temperature":0.3,' in raw  # as the client wrote it, whatever it wrote


def test_an_assistants_message_that_was_to_be_continued_grows_A22() -> None:
    body = ASKED | {"messages": [{"role": "assistant", "content": "Once"}], "continue_final_message": True}
    assert asked_next(body, kept(" upon"))["messages"] == [{"role": "assistant", "content": "Once upon"}]


def test_completions_without_a_limit_go_on_once_they_are_beyond_every_engines_own_A22() -> None:
    body = {"prompt": "p"}
    assert asked_next(body, kept("a", "b", chat=False)) is None
    assert asked_next(body, kept(*["a"] * 17, chat=False)) == {"prompt": "p" + "a" * 17}


def test_the_streams_own_count_of_tokens_is_believed_A22() -> None:
    said = kept("a b c", usage={"prompt_tokens": 3, "completion_tokens": 4})
    assert asked_next(ASKED, said)["max_tokens"] == 5
    joined = Joined(said, closing=False).feed(
        b'data: {"id":"b","choices":[],"usage":{"prompt_tokens":8,"completion_tokens":2,"total_tokens":10,'
        b'"prompt_tokens_details":{"cached_tokens":7}}}\n\n'
    )
    usage = json.loads(joined[6:])["usage"]
    assert usage == {
        "prompt_tokens": 3,
        "completion_tokens": 6,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


def test_a_stream_that_goes_back_to_reasoning_or_is_none_is_malformed_A22() -> None:
    for event in (b'{"choices":[{"delta":{"reasoning_content":"x"}}]}', b'{"choices":{}}', b"{", b'{"choices":[1]}'):
        with pytest.raises(BadChunk):
            Joined(kept("a"), closing=False).feed(b"data: %b\n\n" % event)


def test_an_error_of_the_engines_passes_and_ends_it_A22() -> None:
    said = kept("a")
    event = b'data: {"error":{"code":500}}\n\n'
    assert Joined(said, closing=False).feed(event) == event
    assert not said.can_go_on


def test_only_whole_events_count() -> None:
    assert [end_of_events(data) for data in (b"", b"data: x\n", b"data: x\n\nda", b"a\r\n\r\nb\r\n", b"a\r\rb")] == [
        *(0, 0, 9, 5, 3)
    ]


VLLM = {"id": "m", "owned_by": "vllm", "root": "/models/a", "parent": None, "created": 1}
LLAMA = {"id": "m", "owned_by": "llamacpp", "meta": {"n_vocab": 9, "n_params": 7, "size": 5, "n_ctx": 1}}


def test_engines_are_known_by_their_signature_and_declarations_decide_A22() -> None:
    both = ("/chat/completions", "/completions")
    assert continues(hints_of({}), [VLLM]) == continues(hints_of({}), [LLAMA]) == both
    assert continues(hints_of({}), [{"id": "m", "owned_by": "mock"}]) == ()
    assert continues(hints_of({"continues": "chat"}), []) == both[:1]
    assert continues(hints_of({"continues": ["chat", "completions"]}), []) == both
    assert continues(hints_of({"continues": "none"}), [VLLM]) == ()


def test_lineages_differ_by_what_is_declared_else_by_what_the_models_call_tells_A22() -> None:
    def line(metadata: dict[str, Any], told: dict[str, Any]) -> str | None:
        return lineages(hints_of(metadata), {"m": told}, ["m"]).get("m")

    assert line({}, VLLM) == line({}, VLLM | {"created": 2, "max_model_len": 7}) != line({}, VLLM | {"root": "/b"})
    assert line({}, LLAMA) != line({}, LLAMA | {"meta": {"n_vocab": 9, "n_params": 7, "size": 4}})
    assert line({"revision": "1"}, VLLM) == line({"revision": "1"}, VLLM | {"root": "/b"}) != line({}, VLLM)
    assert line({"tokenizer": "t"}, VLLM) != line({}, VLLM)
    assert line({}, {}) is None
