"""The data plane end to end: real sockets, a replica of raw bytes, a client of raw bytes."""

import asyncio
import dataclasses
import itertools
import json

from router.model import Eligibility, Table
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, Plane, event, plain, read_reply, request, reset

CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"model":"m","stream":true,"messages":[]}'


async def answer_ok(call: Call) -> None:
    await call.send(plain(b'{"ok":1}'))


async def answer_503(call: Call) -> None:
    await call.send(plain(b'{"busy":1}', status=b"503 Service Unavailable", extra=b"retry-after: 7\r\n"))


async def stream_two(call: Call) -> None:
    await call.send(SSE_HEAD + event("one"))
    await call.send(event("two") + DONE)


async def close_at_once(call: Call) -> None:
    call.close()


def error_code(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


async def test_json_passes_unchanged_and_hop_by_hop_fields_do_not(plane: Plane) -> None:
    async def answer(call: Call) -> None:
        await call.send(plain(b'{"a": 1}', extra=b"Set-Cookie: a=b\r\nServer: x\r\nX-Kept: yes\r\nKeep-Alive: 5\r\n"))

    replica = await plane.add(answer)
    plane.route(replica)
    reply = await plane.post(CHAT, headers="cookie: c=d\r\nx-secret: s\r\nauthorization: Bearer k\r\n")
    assert (reply.status, reply.body) == (200, b'{"a": 1}')
    assert reply.header("x-kept") == "yes"
    assert reply.header("set-cookie") is reply.header("server") is reply.header("keep-alive") is None
    call = replica.calls[0]
    assert call.body == CHAT
    assert call.header("authorization") == "Bearer k"
    assert call.header("cookie") is call.header("x-secret") is None


async def test_request_id_is_kept_or_made(plane: Plane) -> None:
    replica = await plane.add(answer_ok)
    plane.route(replica)
    kept = await plane.post(CHAT, headers="x-request-id: abc-1\r\n")
    made = await plane.post(CHAT)
    assert kept.header("x-request-id") == replica.calls[0].header("x-request-id") == "abc-1"
    assert made.header("x-request-id") == replica.calls[1].header("x-request-id") != "abc-1"


async def test_stream_arrives_as_it_is_sent_with_the_bytes_it_had(plane: Plane) -> None:
    second = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.send(SSE_HEAD + event("one"))
        await second.wait()
        await call.send(event("two") + DONE)

    plane.route(await plane.add(answer))
    reader, writer = await plane.open()
    writer.write(request(STREAM, headers="connection: keep-alive\r\n"))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"text/event-stream" in head
    assert await reader.readexactly(len(event("one"))) == event("one")
    second.set()
    rest = await read_reply(reader)
    assert rest.raw == event("two") + DONE
    writer.close()


async def test_paths_with_and_without_v1_reach_a_replica_that_serves_one_form(plane: Plane) -> None:
    replica = await plane.add(answer_ok)
    for prefix, expected in (("/v1", b"POST /v1/embeddings"), ("", b"POST /embeddings"), (None, None)):
        plane.route(replica, api_prefix=prefix)
        for path in ("/v1/embeddings", "/embeddings"):
            replica.calls.clear()
            assert (await plane.post(b'{"model":"m","input":"x"}', path)).status == 200
            line = replica.calls[0].line
            assert line.startswith(expected if expected is not None else b"POST " + path.encode())


async def test_unknown_model_and_no_replica_are_503_with_their_own_codes_D6(plane: Plane) -> None:
    plane.route(await plane.add(answer_ok))
    unknown = await plane.post(b'{"model":"other","messages":[]}')
    assert (unknown.status, error_code(unknown.body)) == (503, "model_not_found")
    assert (unknown.header("retry-after"), unknown.header("x-should-retry")) == (None, "false")
    plane.route()
    nobody = await plane.post(b'{"messages":[]}')
    assert (nobody.status, error_code(nobody.body)) == (503, "no_healthy_replica")


async def test_without_model_any_ready_replica_is_asked(plane: Plane) -> None:
    plane.route(await plane.add(answer_ok))
    assert (await plane.post(b'{"messages":[]}')).status == 200


async def test_bad_bodies_are_400_and_never_forwarded_D23_D24(plane: Plane) -> None:
    replica = await plane.add(answer_ok)
    plane.route(replica)
    bodies = [
        b"",
        b"[]",
        b'"x"',
        b"{",
        b'\xef\xbb\xbf{"model":"m"}',
        b'{"model":"m\xff"}',
        b'{"model":"m","model":"n"}',
    ]
    bodies += [b'{"model":1}', b'{"model":""}', b'{"model":"m"} x', b'{"model":"m","x":NaN}', b'{"model":"a\\u0000"}']
    bodies += [b'{"model":"m","mod\\u0065l":"n"}', b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"]
    for body in bodies:
        reply = await plane.post(body)
        assert (reply.status, error_code(reply.body)) == (400, "invalid_body"), body[:40]
    assert not replica.calls


async def test_wrong_method_and_unknown_path_are_refused(plane: Plane) -> None:
    replica = await plane.add(answer_ok)
    plane.route(replica)
    assert (await plane.send(b"GET /v1/chat/completions HTTP/1.1\r\nhost: r\r\n\r\n")).status == 405
    assert (await plane.post(CHAT, "/v1/files")).status == 404
    assert not replica.calls


async def test_every_path_is_proxied_when_asked_for(planes: MakePlane) -> None:
    plane = await planes(any_path=True)
    replica = await plane.add(answer_ok)
    plane.route(replica)
    assert (await plane.send(b"GET /v1/files?x=1 HTTP/1.1\r\nhost: r\r\n\r\n")).status == 200
    assert replica.calls[0].line == b"GET /v1/files?x=1 HTTP/1.1"


async def test_refused_connection_is_retried_elsewhere_and_ejected_D5(plane: Plane) -> None:
    replica = await plane.add(answer_ok)
    gone = await plane.add(answer_ok)
    port = gone.port
    await gone.stop()
    plane.replicas.remove(gone)
    endpoints = plane.route(port, replica)
    replies = [await plane.post(CHAT) for _ in range(8)]
    assert [reply.status for reply in replies] == [200] * 8
    assert [reply.header("x-attempts") for reply in replies].count("2") == 1
    assert plane.engine.outliers.ejected(plane.engine.now()) == [endpoints[0].id]


async def test_all_refused_is_503(plane: Plane) -> None:
    gone = await plane.add(answer_ok)
    port = gone.port
    await gone.stop()
    plane.replicas.remove(gone)
    plane.route(port)
    for _ in range(3):  # the panic rule asks again although it is ejected
        reply = await plane.post(CHAT)
        assert (reply.status, error_code(reply.body)) == (503, "connect_failed")


async def test_death_before_the_first_byte_is_retried_A2(plane: Plane) -> None:
    first, second = await plane.add(close_at_once), await plane.add(answer_ok)
    plane.route(first, second)
    replies = [await plane.post(CHAT) for _ in range(4)]
    assert [reply.status for reply in replies] == [200] * 4
    assert len(first.calls) == [reply.header("x-attempts") for reply in replies].count("2") > 0


async def test_death_after_the_head_but_before_the_body_is_retried(plane: Plane) -> None:
    async def head_only(call: Call) -> None:
        await call.send(SSE_HEAD)
        call.reset()

    plane.route(await plane.add(head_only), await plane.add(stream_two))
    for _ in range(2):
        reply = await plane.post(STREAM)
        assert reply.status == 200
        assert reply.body == event("one") + event("two") + DONE


async def test_death_mid_stream_ends_with_an_error_event_and_unclean_A1(plane: Plane) -> None:
    async def die(call: Call) -> None:
        await call.send(SSE_HEAD + event("one"))
        await asyncio.sleep(0.05)
        call.reset()

    dying, other = await plane.add(die), await plane.add(stream_two)
    first, second = plane.route(dying, other)
    # The suspect is asked only once the fresh one has failed: a retry would go there.
    plane.engine.set_table(Table.of(2, (first, dataclasses.replace(second, eligibility=Eligibility.SUSPECT))))
    reply = await plane.post(STREAM)
    assert reply.closed
    assert reply.body.startswith(event("one"))
    assert b'"code":"upstream_died"' in reply.body
    assert b"[DONE]" not in reply.body
    assert not reply.body.endswith(b"0\r\n\r\n")
    assert (len(dying.calls), len(other.calls)) == (1, 0)


async def test_death_mid_chunk_keeps_the_clients_framing_whole(plane: Plane) -> None:
    async def die(call: Call) -> None:
        await call.send(SSE_HEAD + b"ff\r\ndata: partial")
        await asyncio.sleep(0.05)
        call.reset()

    plane.route(await plane.add(die))
    reply = await plane.post(STREAM)
    size, _, rest = reply.body.partition(b"\r\n")
    assert rest[: int(size, 16)] == b"data: partial"
    size, _, rest = rest[int(size, 16) + 2 :].partition(b"\r\n")
    assert b"upstream_died" in rest[: int(size, 16)]
    assert rest[int(size, 16) :] == b"\r\n"


async def test_death_mid_json_is_never_half_an_answer_A3(plane: Plane) -> None:
    async def with_length(call: Call) -> None:
        await call.send(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{"a":')
        await asyncio.sleep(0.02)
        call.reset()

    async def with_chunks(call: Call) -> None:
        await call.send(
            b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"a":\r\n'
        )
        await asyncio.sleep(0.02)
        call.reset()

    for script in (with_length, with_chunks):
        dying = await plane.add(script)
        plane.route(dying)
        reply = await plane.post(CHAT)
        assert (reply.status, error_code(reply.body)) == (502, "upstream_died")
        plane.route(dying, await plane.add(answer_ok))
        assert [(await plane.post(CHAT)).body for _ in range(2)] == [b'{"ok":1}'] * 2


async def test_stream_without_its_end_mark_is_not_clean_D10(plane: Plane) -> None:
    async def no_done(call: Call) -> None:
        await call.send(SSE_HEAD + event("one") + b"0\r\n\r\n")

    async def by_close(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: x\n\n")
        call.close()

    for script in (no_done, by_close):
        plane.route(await plane.add(script))
        reply = await plane.post(STREAM)
        assert b'"code":"upstream_truncated"' in reply.body
        assert not reply.body.endswith(b"0\r\n\r\n")


async def test_an_engine_without_end_marks_may_say_so_in_its_record_D10(plane: Plane) -> None:
    async def no_done(call: Call) -> None:
        await call.send(SSE_HEAD + event("one") + b"0\r\n\r\n")

    plane.route(await plane.add(no_done), end_marked=False)
    assert (await plane.post(STREAM)).body == event("one") + b"0\r\n\r\n"


async def test_other_paths_have_other_end_marks_D10(plane: Plane) -> None:
    async def responses(call: Call) -> None:
        long = b"event: response.completed\ndata: {" + b"x" * 2000 + b"}\n\n"
        await call.send(SSE_HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(long), long))

    async def messages(call: Call) -> None:
        end = b"event: message_stop\ndata: {}\n\n"
        await call.send(SSE_HEAD + b"%x\r\n%b\r\n" % (len(end), end))
        await call.send(b"0\r\n\r\n")

    async def speech(call: Call) -> None:
        await call.send(SSE_HEAD + event("audio") + b"0\r\n\r\n")

    for script, path in ((responses, "/v1/responses"), (messages, "/v1/messages"), (speech, "/v1/audio/speech")):
        plane.route(await plane.add(script))
        assert (await plane.post(STREAM, path)).body.endswith(b"0\r\n\r\n"), path


async def test_busy_replica_is_passed_over_and_its_answer_passed_on_when_alone_A20(plane: Plane) -> None:
    busy, free = await plane.add(answer_503), await plane.add(answer_ok)
    plane.route(busy, free)
    assert [(await plane.post(CHAT)).status for _ in range(4)] == [200] * 4
    plane.route(busy)
    reply = await plane.post(CHAT)
    assert (reply.status, reply.body, reply.header("retry-after")) == (503, b'{"busy":1}', "7")
    assert plane.engine.outliers.ejected(plane.engine.now()) == []


async def test_retries_stay_within_their_budget_D8(plane: Plane) -> None:
    async def slow_503(call: Call) -> None:
        await asyncio.sleep(0.3)
        await answer_503(call)

    replicas = [await plane.add(slow_503) for _ in range(3)]
    plane.route(*replicas)
    replies = await asyncio.gather(*(plane.post(CHAT) for _ in range(50)))
    assert {reply.status for reply in replies} == {503}
    assert sum(len(replica.calls) for replica in replicas) <= 65


async def test_retries_stay_within_their_budget_when_refusals_are_instant_W23(plane: Plane) -> None:
    replicas = [await plane.add(answer_503) for _ in range(3)]
    plane.route(*replicas)
    reader, writer = await plane.open()
    for _ in range(200):
        writer.write(request(CHAT, headers="connection: keep-alive\r\n"))
        assert (await read_reply(reader)).status == 503
    writer.close()
    assert 200 < sum(len(replica.calls) for replica in replicas) <= 200 * 1.2 + 5


async def test_stale_keepalive_is_silent_D9(plane: Plane) -> None:
    async def answer_then_close(call: Call) -> None:
        await answer_ok(call)
        call.close()

    replica = await plane.add(answer_then_close)
    plane.route(replica)
    reader, writer = await plane.open()
    for _ in range(200):
        writer.write(request(CHAT, headers="connection: keep-alive\r\n"))
        assert (await read_reply(reader)).status == 200
    writer.close()
    assert plane.engine.outliers.ejected(plane.engine.now()) == []


async def test_client_gone_frees_the_replica_in_every_phase_D1_D2(plane: Plane) -> None:
    arrived, freed = asyncio.Event(), asyncio.Event()

    async def silent(call: Call) -> None:
        arrived.set()
        await call.until_gone()
        freed.set()

    async def streaming(call: Call) -> None:
        await call.send(SSE_HEAD + event("one"))
        await silent(call)

    def gone(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    for script, leave in itertools.product((silent, streaming), (gone, reset)):
        arrived.clear()
        freed.clear()
        plane.route(await plane.add(script))
        _, writer = await plane.open()
        writer.write(request(STREAM))
        await asyncio.wait_for(arrived.wait(), 5)
        began = asyncio.get_running_loop().time()
        leave(writer)
        await asyncio.wait_for(freed.wait(), 5)
        assert asyncio.get_running_loop().time() - began < 1
        assert plane.in_flight() == 0


async def test_timeouts_have_names(planes: MakePlane) -> None:
    async def silent(call: Call) -> None:
        await call.until_gone()

    async def stalls(call: Call) -> None:
        await call.send(SSE_HEAD + event("one"))
        await call.until_gone()

    plane = await planes(first_byte_timeout_s=0.3, idle_timeout_s=0.3)
    plane.route(await plane.add(silent))
    reply = await plane.post(CHAT)
    assert (reply.status, error_code(reply.body)) == (504, "first_byte_timeout")
    plane.route(await plane.add(stalls))
    assert b'"code":"idle_timeout"' in (await plane.post(STREAM)).body
    plane = await planes(total_timeout_s=0.3)
    plane.route(await plane.add(silent))
    reply = await plane.post(CHAT)
    assert (reply.status, error_code(reply.body)) == (504, "request_timeout")


async def test_slow_reader_stops_the_replica_not_the_memory_D3(plane: Plane) -> None:
    sent = 0

    async def flood(call: Call) -> None:
        nonlocal sent
        await call.send(SSE_HEAD)
        block = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        while sent < 2000:
            await call.send(block)
            sent += 1

    plane.route(await plane.add(flood))
    reader, writer = await plane.open()
    writer.write(request(STREAM))
    await reader.readexactly(1000)
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.3)
    assert sent < 2000
    assert next(iter(plane.engine.clients)).paused
    writer.transport.abort()


async def test_drained_and_down_replicas_get_nothing_new_D28(plane: Plane) -> None:
    first, second = await plane.add(answer_ok), await plane.add(answer_ok)
    plane.route(first, eligibility=Eligibility.DRAINING)
    assert (await plane.post(CHAT)).status == 503
    plane.route(second, eligibility=Eligibility.SUSPECT)
    assert (await plane.post(CHAT)).status == 200
    assert not first.calls


async def test_idle_connections_to_a_replica_that_drains_are_closed_at_once_D28(plane: Plane) -> None:
    replica = await plane.add(answer_ok)
    (endpoint,) = plane.route(replica)
    assert (await plane.post(CHAT)).status == 200
    plane.engine.set_table(Table.of(2, (dataclasses.replace(endpoint, eligibility=Eligibility.DRAINING),)))
    async with asyncio.timeout(2):  # below the four seconds after which an idle one would be closed anyhow
        while replica._open:
            await asyncio.sleep(0.01)


async def test_http10_client_gets_plain_bytes_until_the_close(plane: Plane) -> None:
    plane.route(await plane.add(stream_two))
    raw = b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(STREAM), STREAM)
    reply = await plane.send(raw, until_close=True)
    assert reply.closed
    assert reply.header("transfer-encoding") is None
    assert reply.body == b'data: {"t":"one"}\n\ndata: {"t":"two"}\n\ndata: [DONE]\n\n'


async def test_large_bodies_and_limits(plane: Plane) -> None:
    replica = await plane.add(answer_ok)
    plane.route(replica)
    large = b'{"model":"m","messages":[{"content":"' + b"x" * 700_000 + b'"}]}'
    assert (await plane.post(large)).status == 200
    assert replica.calls[0].body == large
    reply = await plane.post(b"x" * ((1 << 20) + 1))
    assert (reply.status, len(replica.calls)) == (413, 1)


async def test_expect_continue_and_chunked_request_bodies(plane: Plane) -> None:
    replica = await plane.add(answer_ok)
    plane.route(replica)
    reader, writer = await plane.open()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"a\r\n" + CHAT[:10] + b"\r\n")
    await writer.drain()
    rest = CHAT[10:]
    writer.write(b"%x;ext=1\r\n%b\r\n0\r\n\r\n" % (len(rest), rest))
    assert (await read_reply(reader)).status == 200
    assert replica.calls[0].body == CHAT
    assert replica.calls[0].header("content-length") == str(len(CHAT))
    writer.close()


async def test_too_many_connections_are_refused(planes: MakePlane) -> None:
    plane = await planes(max_connections=1)
    _, writer = await plane.open()
    while not plane.engine.clients:
        await asyncio.sleep(0.01)
    assert (await plane.send(request(CHAT), until_close=True)).status == 503
    writer.close()


async def test_a_router_that_stops_answers_each_connection_once_more_and_closes_those_that_stay_idle_D16(
    plane: Plane,
) -> None:
    go = asyncio.Event()

    async def wait_then_answer(call: Call) -> None:
        await go.wait()
        await answer_ok(call)

    replica = await plane.add(wait_then_answer)
    plane.route(replica)
    idle, silent, busy, fresh = [await plane.open() for _ in range(4)]
    for reader, writer in (idle, silent):
        writer.write(b"GET /nowhere HTTP/1.1\r\nhost: r\r\n\r\n")
        assert (await read_reply(reader)).status == 404
    busy[1].write(request(CHAT, headers="connection: keep-alive\r\n"))
    while not replica.calls:
        await asyncio.sleep(0.01)
    plane.engine.drain()
    for _, writer in (idle, fresh):  # accepted before the drain: may still ask once
        writer.write(request(CHAT, headers="connection: keep-alive\r\n"))
    assert await asyncio.wait_for(silent[0].read(), 5) == b""
    assert plane.engine.busy()
    go.set()
    for reader, writer in (idle, busy, fresh):
        reply = await read_reply(reader, until_close=True)
        assert (reply.status, reply.header("connection"), reply.closed) == (200, "close", True)
        writer.close()
    silent[1].close()
    assert not plane.engine.busy()


async def test_an_answer_that_promised_to_go_on_is_followed_by_one_that_does_not_D16(plane: Plane) -> None:
    """Its head had left when the router was told to stop."""
    go = asyncio.Event()

    async def stream(call: Call) -> None:
        await call.send(SSE_HEAD + event("a"))
        await go.wait()
        await call.send(DONE)

    plane.route(await plane.add(stream))
    reader, writer = await plane.open()
    writer.write(request(STREAM, headers="connection: keep-alive\r\n"))
    begun = await reader.readuntil(b'"a"}\n\n\r\n')
    assert b"connection:" not in begun
    plane.engine.drain()
    go.set()
    await reader.readuntil(b"\r\n0\r\n\r\n")
    writer.write(request(STREAM, headers="connection: keep-alive\r\n"))
    reply = await read_reply(reader, until_close=True)
    assert (reply.status, reply.header("connection"), reply.closed) == (200, "close", True)
    writer.close()


async def test_multipart_upload_is_routed_by_its_model_field(plane: Plane) -> None:
    replica = await plane.add(answer_ok)
    plane.route(replica)
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--b--\r\n'
    head = (
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: r\r\nconnection: close\r\n"
        b"content-type: multipart/form-data; boundary=b\r\ncontent-length: %d\r\n\r\n"
    )
    for model, status in ((b"m", 200), (b"other", 503)):
        body = form % model
        assert (await plane.send(head % len(body) + body)).status == status
