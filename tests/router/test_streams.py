"""What the router may write into an answer, and how it judges one that is over: by plane and fakes, byte for byte."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from router.counters import OUTCOMES, AttemptOutcome
from router.proxy.stream_end import finished
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, Plane, Reply, event, plain, request
from tests.router.sse_decoders import DECODERS, go_before_3_43
from tests.router.test_raw_responses import unchunk

STREAM = b'{"model":"m","stream":true,"messages":[]}'
COMMENT = b": keep-alive\n"
LAST = b"0\r\n\r\n"
ERROR = b'data: {"error":{"code":400,"message":"request exceeds the available context size"}}\n\n'
SILENCE_S = 0.2
"""Of a replica; comments are due after a quarter of it."""
TWO = b'{"model":"m","stream":true,"n":2,"messages":[]}'


@pytest.fixture(autouse=True)
def _quick_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.proxy.engine.SWEEP_S", 0.02)


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def choice(index: int = 0, reason: str | None = None, text: str = "x" * 80) -> bytes:
    said = {"choices": [{"index": index, "delta": {"content": text}, "finish_reason": reason}]}
    return b"data: " + json.dumps(said).encode() + b"\n\n"


def head(
    kind: bytes = b"text/event-stream", extra: bytes = b"", framing: bytes = b"transfer-encoding: chunked"
) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%b%b\r\n\r\n" % (kind, extra, framing)


def deflated(text: bytes) -> bytes:
    return zlib.compress(text)


def outcome(plane: Plane, kind: AttemptOutcome) -> int:
    plane.engine.counters.flush()
    return plane.engine.counters.total(0, OUTCOMES + kind)


def blamed(plane: Plane) -> bool:
    faults = (
        AttemptOutcome.DIED,
        AttemptOutcome.TRUNCATED,
        AttemptOutcome.MALFORMED,
        AttemptOutcome.TIMED_OUT,
        AttemptOutcome.SERVER_ERROR,
    )
    return any(outcome(plane, kind) for kind in faults) or not plane.engine.outliers.quiet


# -- W4: coded bodies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "x-unheard-of", "gzip, gzip"])
async def test_a_coded_stream_passes_untouched_and_nobody_is_blamed_W4(plane: Plane, coding: str) -> None:
    text = event("one") + b"data: [DONE]\n\n"
    body = gzip.compress(text) if coding == "gzip" else deflated(text)  # no decoder looks at it here
    lines = f"content-encoding: {coding}\r\nvary: accept-encoding\r\n".encode()

    async def coded(call: Call) -> None:
        await call.send(head(extra=lines) + chunk(body[:9]))
        await asyncio.sleep(0.01)
        await call.send(chunk(body[9:]) + LAST)

    plane.route(await plane.add(coded))
    for _ in range(15):
        reply = await plane.post(STREAM, headers="accept-encoding: gzip\r\n")
        assert (reply.status, reply.header("content-encoding")) == (200, coding)
        assert reply.body == chunk(body[:9]) + chunk(body[9:]) + LAST
    assert not blamed(plane)


async def test_a_coded_stream_that_is_cut_ends_unclean_and_gets_no_plain_text_W4(plane: Plane) -> None:
    body = gzip.compress(event("one"))

    async def cut(call: Call) -> None:
        await call.send(head(extra=b"content-encoding: gzip\r\n") + chunk(body))
        await asyncio.sleep(0.05)
        call.reset()

    plane.route(await plane.add(cut))
    reply = await plane.post(STREAM)
    assert reply.body == chunk(body)
    assert reply.closed


async def test_coded_json_that_ends_with_its_connection_is_not_parsed_W4(plane: Plane) -> None:
    body = gzip.compress(b'{"ok":1}')

    async def coded(call: Call) -> None:
        await call.send(head(b"application/json", b"content-encoding: gzip\r\n", b"connection: close") + body)
        call.close()

    plane.route(await plane.add(coded))
    reply = await plane.post(b'{"model":"m","messages":[]}')
    assert (reply.status, unchunk(reply.body), reply.header("content-encoding")) == (200, body, "gzip")
    assert not blamed(plane)


async def test_a_coded_stream_gets_no_comment_in_any_phase_W4(planes: MakePlane) -> None:
    plane = await planes(sse_keepalive_s=0.05)
    body = gzip.compress(event("one"))

    async def slow(call: Call) -> None:
        await call.send(head(extra=b"content-encoding: gzip\r\n"))
        await asyncio.sleep(SILENCE_S)
        await call.send(chunk(body[:5]))
        await asyncio.sleep(SILENCE_S)
        await call.send(chunk(body[5:]) + LAST)

    plane.route(await plane.add(slow))
    reply = await plane.post(STREAM)
    assert reply.header("content-encoding") == "gzip"
    assert unchunk(reply.body) == body


async def test_streams_are_asked_for_as_they_are_and_other_answers_as_the_client_likes_W4(plane: Plane) -> None:
    async def ok(call: Call) -> None:
        await call.send(plain(b"{}"))

    replica = await plane.add(ok)
    plane.route(replica)
    likes = "accept-encoding: gzip, br\r\n"
    await plane.post(STREAM, headers=likes)
    await plane.post(STREAM)
    await plane.post(b'{"model":"m","messages":[]}', headers=likes)
    await plane.post(STREAM, "/v1/audio/speech", headers=likes)
    asked = [call.head.lower().count(b"accept-encoding:") for call in replica.calls]
    assert asked == [1, 1, 1, 1]
    said = [call.header("accept-encoding") for call in replica.calls]
    assert said == ["identity", "identity", "gzip, br", "gzip, br"]


@pytest.mark.parametrize("kind", [b"text/event-stream", b"application/json"])
async def test_a_coded_answer_after_an_early_head_is_one_error_event_and_no_garbage_W4(
    planes: MakePlane, kind: bytes
) -> None:
    plane = await planes(sse_keepalive_s=0.05)

    async def late(call: Call) -> None:
        await asyncio.sleep(SILENCE_S)
        await call.send(head(kind, b"content-encoding: gzip\r\n") + chunk(gzip.compress(b"{}")) + LAST)

    plane.route(await plane.add(late))
    reply = await plane.post(STREAM)
    assert reply.header("content-encoding") is None
    text = unchunk(reply.body + LAST)
    *comments, last = text.replace(COMMENT, b"|").split(b"|")
    assert len(comments) >= 1
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_no_stream"
    assert not reply.body.endswith(LAST)
    assert not blamed(plane)


# -- W5: no stream ----------------------------------------------------------------------------------------------------

SOUND = bytes(range(256)) * 8
NO_STREAMS: dict[str, tuple[str, bytes, bytes]] = {
    "speech": ("/v1/audio/speech", b"audio/mpeg", SOUND),
    "speech, no kind": ("/v1/audio/speech", b"application/octet-stream", SOUND),
    "a path of another API": ("/api/chat", b"application/x-ndjson", b'{"done":false}\n{"done":true}\n'),
    "images": ("/v1/images/generations", b"image/png", SOUND),
}


@pytest.mark.parametrize("name", NO_STREAMS)
async def test_stream_true_of_what_is_no_event_stream_passes_as_it_is_W5(planes: MakePlane, name: str) -> None:
    path, kind, body = NO_STREAMS[name]
    plane = await planes(sse_keepalive_s=0.05, any_path=True)

    async def slow(call: Call) -> None:
        await asyncio.sleep(SILENCE_S)
        await call.send(head(kind) + chunk(body[:20]))
        await asyncio.sleep(SILENCE_S)
        await call.send(chunk(body[20:]) + LAST)

    plane.route(await plane.add(slow))
    reply = await plane.post(STREAM, path)
    assert (reply.status, reply.header("content-type")) == (200, kind.decode())
    assert unchunk(reply.body) == body
    assert not blamed(plane)


async def test_a_head_that_says_no_stream_is_kept_however_late_its_body_W5(planes: MakePlane) -> None:
    plane = await planes(sse_keepalive_s=0.05)

    async def slow(call: Call) -> None:
        await call.send(head(b"application/json"))
        await asyncio.sleep(SILENCE_S)
        await call.send(chunk(b'{"ok":1}') + LAST)

    plane.route(await plane.add(slow))
    reply = await plane.post(STREAM)
    assert (reply.header("content-type"), unchunk(reply.body)) == ("application/json", b'{"ok":1}')
    assert not blamed(plane)


@pytest.mark.parametrize(
    ("accept", "early"),
    [
        ("", True),
        ("accept: application/json\r\n", True),
        ("accept: text/html;q=0.5, */*\r\n", True),
        ("accept: text/html\r\naccept: Text/Event-Stream\r\n", True),
        ("accept: application/x-ndjson\r\n", False),
    ],
)
async def test_nobody_who_takes_no_events_gets_an_early_head_W5(planes: MakePlane, accept: str, *, early: bool) -> None:
    plane = await planes(sse_keepalive_s=0.05)

    async def late(call: Call) -> None:
        await asyncio.sleep(SILENCE_S)
        await call.send(plain(b'{"ok":1}'))

    plane.route(await plane.add(late))
    reply = await plane.post(STREAM, headers=accept)
    assert (reply.header("content-type") == "text/event-stream") is early
    assert (COMMENT in reply.body) is early


async def test_json_after_an_early_head_is_one_event_and_no_fault_W5(planes: MakePlane) -> None:
    plane = await planes(sse_keepalive_s=0.05)

    async def late(call: Call) -> None:
        await asyncio.sleep(SILENCE_S)
        await call.send(head(b"application/json") + chunk(b'{"choices":\n') + chunk(b"[]}") + LAST)

    plane.route(await plane.add(late))
    assert unchunk((await plane.post(STREAM)).body + LAST).endswith(b'data: {"choices": []}\n\n')
    assert not blamed(plane)


async def test_what_becomes_one_event_is_bounded_W5(planes: MakePlane) -> None:
    plane = await planes(sse_keepalive_s=0.05, held_limit_bytes=1000)

    async def endless(call: Call) -> None:
        await asyncio.sleep(SILENCE_S)
        await call.send(head(b"application/json") + chunk(b"[" + b"1," * 1000) * 20 + LAST)

    plane.route(await plane.add(endless))
    assert b"upstream_no_stream" in (await plane.post(STREAM)).body


# -- W6: comments -----------------------------------------------------------------------------------------------------


async def silent_stream(plane: Plane, *, events: tuple[bytes, ...] = (b"one", b"two")) -> bytes:
    """What a client gets of a replica that is silent before, between and after its events."""

    async def slow(call: Call) -> None:
        await asyncio.sleep(SILENCE_S)
        await call.send(SSE_HEAD)
        for part in events:
            await asyncio.sleep(SILENCE_S)
            await call.send(chunk(choice(text=part.decode())))
        await asyncio.sleep(SILENCE_S)
        await call.send(chunk(choice(reason="stop")) + DONE)

    plane.route(await plane.add(slow))
    reply = await plane.post(STREAM)
    assert not blamed(plane)
    return unchunk(reply.body)


async def test_silence_gets_comments_before_between_and_after_events_W6(planes: MakePlane) -> None:
    text = await silent_stream(await planes(sse_keepalive_s=0.05))
    before, between, after, rest = (part.count(COMMENT) for part in text.split(b"data: {")[:4])
    assert before >= 2
    assert between >= 1
    assert after >= 1
    assert rest == 0
    assert text.count(COMMENT) == before + between + after
    assert COMMENT + b"\n" not in text


@pytest.mark.parametrize("name", DECODERS)
async def test_comments_survive_the_rules_of_clients_that_do_not_install_here_W6(planes: MakePlane, name: str) -> None:
    text = await silent_stream(await planes(sse_keepalive_s=0.05))
    said = [item["choices"][0] for item in DECODERS[name](text)]
    assert [item["delta"]["content"][:3] for item in said] == ["one", "two", "xxx"]


async def test_the_form_with_two_newlines_is_what_broke_the_go_client_W6() -> None:
    with pytest.raises(json.JSONDecodeError):
        list(go_before_3_43(COMMENT + b"\n" + choice()))


async def test_an_error_after_comments_reaches_a_client_that_takes_blank_lines_for_events_W6(planes: MakePlane) -> None:
    plane = await planes(sse_keepalive_s=0.05)

    async def dies(call: Call) -> None:
        await asyncio.sleep(SILENCE_S)
        if not call.header("x-nothing"):
            await call.send(SSE_HEAD + chunk(choice()))
        await asyncio.sleep(SILENCE_S)
        call.reset()

    plane.route(await plane.add(dies))
    text = unchunk((await plane.post(STREAM)).body + LAST)
    *_, last = go_before_3_43(text)
    assert last["error"]["code"] == "upstream_died"


@pytest.mark.parametrize("cut", [b'data: {"a":', b'data: {"a":1}', b'data: {"a":1}\n', b"event: x\r\n"])
async def test_no_comment_goes_inside_an_event_W6(planes: MakePlane, cut: bytes) -> None:
    plane = await planes(sse_keepalive_s=0.05)

    async def halting(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(choice()) + chunk(cut))
        await asyncio.sleep(SILENCE_S)
        await call.send(chunk(b'data: {"b":2}\n\n') + DONE)

    plane.route(await plane.add(halting))
    assert COMMENT not in (await plane.post(STREAM)).body


@pytest.mark.parametrize("parts", [(b"data: {}\r\n\r\n",), (b"data: {}\n", b"\n"), (b"data: {}\r\n", b"\r", b"\n")])
async def test_the_end_of_an_event_is_seen_through_the_framing_W6(planes: MakePlane, parts: tuple[bytes, ...]) -> None:
    plane = await planes(sse_keepalive_s=0.05)

    async def halting(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(choice()))
        for part in parts:
            await call.send(chunk(part))
            await asyncio.sleep(0.02)
        await asyncio.sleep(SILENCE_S)
        await call.send(DONE)

    plane.route(await plane.add(halting))
    assert unchunk((await plane.post(STREAM)).body).startswith(choice() + b"".join(parts) + COMMENT)


async def test_a_stream_of_a_told_length_gets_nothing_added_W6(planes: MakePlane) -> None:
    plane = await planes(sse_keepalive_s=0.05)
    text = choice() + b"data: [DONE]\n\n"

    async def sized(call: Call) -> None:
        await call.send(head(framing=b"content-length: %d" % len(text)) + text[:-14])
        await asyncio.sleep(SILENCE_S)
        if call.header("accept-language"):
            call.reset()
        else:
            await call.send(text[-14:])

    plane.route(await plane.add(sized))
    assert (await plane.post(STREAM)).body == text
    cut = await plane.post(STREAM, headers="accept-language: x\r\n")
    assert (cut.body, cut.closed) == (text[:-14], True)


async def test_a_replicas_own_head_is_kept_when_only_its_first_event_is_late_W6(planes: MakePlane) -> None:
    plane = await planes(sse_keepalive_s=0.05)

    async def slow(call: Call) -> None:
        await call.send(head(extra=b"x-engine: e\r\n"))
        await asyncio.sleep(SILENCE_S)
        await call.send(chunk(choice()) + DONE)

    plane.route(await plane.add(slow))
    reply = await plane.post(STREAM)
    assert reply.header("x-engine") == "e"
    assert unchunk(reply.body).startswith(COMMENT)


async def test_no_interval_means_no_comment_W6(planes: MakePlane) -> None:
    assert COMMENT not in await silent_stream(await planes(sse_keepalive_s=0.0), events=())


# -- W8: the engine's own error ----------------------------------------------------------------------------------------


def streams(*payloads: bytes, last: bytes = LAST, reset: bool = False) -> Callable[[Call], Any]:
    async def answer(call: Call) -> None:
        await call.send(SSE_HEAD + b"".join(map(chunk, payloads)) + last)
        if reset:
            await asyncio.sleep(0.05)
            call.reset()

    return answer


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
async def test_an_engines_own_error_ends_its_stream_and_is_passed_on_as_it_is_W8(plane: Plane, path: str) -> None:
    plane.route(await plane.add(streams(choice(), ERROR)))
    for _ in range(12):
        assert (await plane.post(STREAM, path)).body == chunk(choice()) + chunk(ERROR) + LAST
    assert not blamed(plane)
    assert outcome(plane, AttemptOutcome.CLIENT_ERROR) == 12


async def test_an_engines_error_of_its_own_making_counts_like_a_500_W8(plane: Plane) -> None:
    plane.route(await plane.add(streams(ERROR.replace(b"400", b"500"))))
    await plane.post(STREAM)
    assert outcome(plane, AttemptOutcome.SERVER_ERROR) == 1
    assert plane.engine.outliers.ejected(plane.engine.now()) == []


async def test_an_engine_that_breaks_off_after_its_own_error_gets_no_second_one_W8(plane: Plane) -> None:
    plane.route(await plane.add(streams(choice(), ERROR, last=b"", reset=True)))
    reply = await plane.post(STREAM)
    assert reply.body == chunk(choice()) + chunk(ERROR)
    assert reply.closed


BREAKS: dict[str, Callable[[Call], Any]] = {
    "cut off": streams(choice(), last=b"", reset=True),
    "ended without its mark": streams(choice()),
    "nonsense": streams(choice(), last=b"zz\r\n"),
}


@pytest.mark.parametrize("name", BREAKS)
async def test_twelve_prompts_of_one_client_that_break_their_answers_do_not_eject_W8(plane: Plane, name: str) -> None:
    plane.route(await plane.add(BREAKS[name]), await plane.add(BREAKS[name]))
    for _ in range(12):
        assert not (await plane.post(STREAM)).body.endswith(LAST)
    assert plane.engine.outliers.ejected(plane.engine.now()) == []


async def test_a_replica_that_fails_what_another_answers_is_ejected_for_one_client_too_W8(plane: Plane) -> None:
    async def dies(call: Call) -> None:
        call.reset()

    sick, _ = plane.route(await plane.add(dies), await plane.add(streams(choice(reason="stop"))))
    for _ in range(40):
        assert (await plane.post(STREAM)).status == 200
        if plane.engine.outliers.ejected(plane.engine.now()):
            break
    assert plane.engine.outliers.ejected(plane.engine.now()) == [sick.id]


# -- W44: no mark, and complete ---------------------------------------------------------------------------------------

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
COMPLETE: dict[str, tuple[bytes, tuple[bytes, ...]]] = {
    "stop": (STREAM, (choice(), choice(reason="stop"))),
    "in one read with the rest": (STREAM, (choice() + choice(reason="length"),)),
    "then usage": (STREAM, (choice(), choice(reason="stop"), USAGE)),
    "then usage and pings": (STREAM, (choice(reason="tool_calls", text="y" * 3000), USAGE, b":\n\n", b":\n\n")),
    "two choices": (TWO, (choice(0), choice(1), choice(0, "stop"), choice(1), choice(1, "stop"), USAGE)),
    "two prompts": (
        b'{"model":"m","stream":true,"prompt":["a","b"]}',
        (choice(1, "stop"), choice(0), choice(0, "stop")),
    ),
}
INCOMPLETE: dict[str, tuple[bytes, tuple[bytes, ...]]] = {
    "no reason": (STREAM, (choice(),)),
    "only usage": (STREAM, (choice(), USAGE)),
    "one of two": (TWO, (choice(0), choice(1), choice(0, "stop"))),
    "only one of two": (TWO, (choice(0), choice(0, "stop"))),
    "nothing": (STREAM, (b": ping\n\n",)),
}


async def ended(plane: Plane, request_body: bytes, payloads: tuple[bytes, ...], last: bytes = LAST) -> Reply:
    async def answer(call: Call) -> None:
        await call.send(SSE_HEAD)
        for payload in payloads:
            await call.send(chunk(payload))
            await asyncio.sleep(0.01)
        await call.send(last)
        if not last:
            call.close()

    plane.route(await plane.add(answer))
    return await plane.post(request_body)


@pytest.mark.parametrize("name", COMPLETE)
async def test_finished_choices_and_clean_framing_are_a_complete_answer_W44(plane: Plane, name: str) -> None:
    asked, payloads = COMPLETE[name]
    reply = await ended(plane, asked, payloads)
    assert reply.body.endswith(LAST)
    assert unchunk(reply.body) == b"".join(payloads)
    assert outcome(plane, AttemptOutcome.OK) == 1
    assert not blamed(plane)


@pytest.mark.parametrize("name", INCOMPLETE)
async def test_a_stream_with_a_choice_that_is_not_finished_was_cut_off_W44(plane: Plane, name: str) -> None:
    asked, payloads = INCOMPLETE[name]
    reply = await ended(plane, asked, payloads)
    assert b'"upstream_truncated"' in reply.body
    assert not reply.body.endswith(LAST)
    assert outcome(plane, AttemptOutcome.TRUNCATED) == 1


async def test_finished_choices_without_clean_framing_are_not_complete_W44(plane: Plane) -> None:
    reply = await ended(plane, STREAM, (choice(reason="stop"),), last=b"")
    assert not reply.body.endswith(LAST)


async def test_the_mark_is_demanded_where_the_record_says_that_it_is_sent_W44(plane: Plane) -> None:
    replica = await plane.add(streams(choice(reason="stop")))
    plane.route(replica, end_marked=True)
    assert b'"upstream_truncated"' in (await plane.post(STREAM)).body
    plane.route(replica, end_marked=False)
    assert unchunk((await plane.post(STREAM)).body) == choice(reason="stop")


async def test_what_passes_through_is_what_was_sent_in_any_split_W44(plane: Plane) -> None:
    text = b"".join(map(chunk, (choice(0), choice(1), choice(0, "stop"), choice(1, "stop")))) + LAST

    async def answer(call: Call) -> None:
        await call.send(SSE_HEAD)
        step = int(call.header("x-request-id") or 1)
        for start in range(0, len(text), step):
            await call.send(text[start : start + step])

    plane.route(await plane.add(answer))
    for step in (3, 50, 1000):
        for asked in (STREAM, TWO):
            reply = await plane.send(request(asked, headers=f"x-request-id: {step}\r\n"), until_close=True)
            assert finished(unchunk(reply.body))
            assert reply.body.endswith(LAST)
    assert not blamed(plane)
