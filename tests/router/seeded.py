"""Replicas whose text is the mock's seeded one, in the test's own loop, and what an undisturbed stream of theirs is."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from babysitter.mock.answers import Generation, seeded_words, text_before
from tests.router.fakes import DONE, SSE_HEAD, Call, Reply
from tests.router.test_raw_responses import unchunk

CHAT: dict[str, Any] = {"model": "m", "stream": True, "max_tokens": 12, "messages": [{"role": "user", "content": "hi"}]}
USAGE = {"stream_options": {"include_usage": True}}
COMPLETIONS: dict[str, Any] = {"model": "m", "stream": True, "max_tokens": 12, "prompt": "once upon"}
CHATS, TEXTS = "/v1/chat/completions", "/v1/completions"
CONTINUES = ("/chat/completions", "/completions")
Then = Callable[[Call], Awaitable[None]]


def generation(body: dict[str, Any], name: str, *, chat: bool = True) -> Generation:
    before = text_before(body, chat=chat)
    words, ended = seeded_words(before, body.get("max_tokens"))
    reason = "stop" if ended else "length"
    return Generation(f"id-{name}", 1, "m", name, words, reason, len(before.split()), chat)


def events(body: dict[str, Any], name: str, *, chat: bool = True) -> list[bytes]:
    """All of a stream but its end mark, as one server says them."""
    usage = bool((body.get("stream_options") or {}).get("include_usage"))
    said = generation(body, name, chat=chat).chunks(usage=usage)
    return [b"data: %b\n\n" % json.dumps(event, separators=(",", ":")).encode() for event in said]


def whole(body: dict[str, Any], name: str, *, chat: bool = True) -> bytes:
    """What a client gets of an undisturbed stream."""
    return b"".join(events(body, name, chat=chat)) + b"data: [DONE]\n\n"


def seeded(name: str, cuts: list[tuple[int, Then]]) -> Then:
    """A replica that streams; who takes a cut from `cuts` does that after so many events instead of going on."""

    async def answer(call: Call) -> None:
        said = events(json.loads(call.body), name, chat=b"/chat/" in call.line)
        cut = cuts.pop() if cuts else None
        await call.send(SSE_HEAD)
        for event in said if cut is None else said[: cut[0]]:
            await call.send(b"%x\r\n%b\r\n" % (len(event), event))
        if cut is None:
            await call.send(DONE)
        else:
            await cut[1](call)

    return answer


def told(reply: Reply) -> tuple[bytes, list[bytes]]:
    """The stream without its comments, and those."""
    body = unchunk(reply.body) if b"chunked" in reply.head else reply.body
    lines = body.splitlines(keepends=True)
    return b"".join(line for line in lines if line[:1] != b":"), [line for line in lines if line[:1] == b":"]
