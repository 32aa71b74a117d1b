import json

import pytest

from router.proxy.stream_end import ChoiceTracker, finished, own_error


def data(**event: object) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def choice(index: int = 0, reason: str | None = None) -> dict[str, object]:
    return {"index": index, "delta": {}, "finish_reason": reason}


ERRORS = {
    "llama.cpp": (data(error={"code": 400, "message": "too long", "type": "exceed_context_size_error"}), 400),
    "vLLM": (data(error={"message": "dead", "type": "InternalServerError", "param": None, "code": 500}), 500),
    "vLLM, older": (data(object="error", message="no", type="BadRequestError", param=None, code=400), 400),
    "TGI": (b'data:{"error":"Input validation error","error_type":"validation"}\n\n', 400),
    "Anthropic": (b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"m"}}\n\n', 400),
    "Responses": (data(type="error", code="server_error", message="m"), 400),
    "by its name alone": (b"event:error\r\ndata: out of memory\r\n\r\n", 400),
    "a code of another kind": (data(error={"message": "no", "code": "context_length_exceeded"}), 400),
    "a code that is no status": (data(error={"message": "no", "code": 7}), 400),
    "with its last line open": (b'data: {"error":{"code":503}}', 503),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_engines_own_error_is_told_from_its_last_event_W8(name: str) -> None:
    event, status = ERRORS[name]
    assert own_error(data(choices=[choice()]) + event) == status
    assert own_error(b"ta: cut off\n\n" + event) == status


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b": keep-alive\n",
        b"data: not json\n\n",
        b"data: null\n\n",
        data(choices=[choice()], error=None),
        data(error={"message": "no"}) + data(choices=[choice()]),
        b"event: error_free\ndata: {}\n\n",
    ],
)
def test_what_is_no_error_event_is_not_taken_for_one_W8(tail: bytes) -> None:
    assert own_error(tail) == 0


def test_a_tail_tells_that_its_choice_is_finished_whatever_follows_it_W44() -> None:
    last = data(choices=[choice(reason="stop")])
    assert finished(b"rest of an event\n\n" + last)
    assert finished(last + data(choices=[], usage={"total_tokens": 3}) + b": ping\n\n")
    assert finished(last.replace(b"\n", b"\r\n"))
    assert not finished(data(choices=[choice()]))
    assert not finished(last + data(choices=[choice()]))
    assert not finished(last + b'data: {"choices":[{"ind')
    assert not finished(b"")


def test_several_choices_are_finished_once_each_of_them_is_W44() -> None:
    stream = b"".join(
        data(choices=[choice(index, reason)])
        for index, reason in ((0, None), (1, None), (0, "stop"), (1, None), (1, "length"))
    )
    for step in (1, 7, len(stream)):
        choices = ChoiceTracker(2)
        assert not choices.finished
        for start in range(0, len(stream), step):
            choices.feed(stream[start : start + step])
        assert choices.finished
    for begun in (data(choices=[choice(0, "stop")]) + data(choices=[choice(1)]), data(choices=[choice(0, "stop")])):
        choices = ChoiceTracker(2)
        choices.feed(begun)
        assert not choices.finished


def test_choices_that_nobody_asked_for_are_not_followed_W44() -> None:
    choices = ChoiceTracker(2)
    choices.feed(b"".join(data(choices=[choice(index, "stop")]) for index in (*range(2, 1000), -1)))
    assert not choices.finished
    choices.feed(data(choices=[choice(0, "stop"), choice(1, "stop"), choice(7)]))
    assert choices.finished
