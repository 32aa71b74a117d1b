"""Forms that go on to their replica while they arrive: what passes when, what never does, and whose time runs."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from router.counters import IN_FLIGHT
from router.policy.models import ModelRule, ModelRules
from tests.router.conftest import MakePlane
from tests.router.fakes import Call, FakeReplica, Plane, Reply, plain, read_reply, request

STREAMED_FROM = 64 << 10
MODEL = b'--b\r\nContent-Disposition: form-data; name="model"\r\nContent-Length: 1\r\n\r\nm\r\n'
SOUND = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n%b\r\n' % random.Random(
    1
).randbytes(600_000).replace(b"--b", b"--a")
FORM = MODEL + SOUND + b"--b--\r\n"
PATH = "/v1/audio/transcriptions"


def head(length: int, headers: str = "") -> bytes:
    return (
        f"POST {PATH} HTTP/1.1\r\nhost: r\r\ncontent-type: multipart/form-data; boundary=b\r\n{headers}"
        f"content-length: {length}\r\n\r\n"
    ).encode()


class Taker(FakeReplica):
    """A replica that keeps what it gets as it comes, and answers when all is there, or at once if it is `early`."""

    def __init__(self) -> None:
        super().__init__(_never)
        self.answer = plain(b'{"text":"x"}')
        self.early = False
        self.raw = b""
        self.reads, self.gone, self.answered = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.reads.set()

    async def stop(self) -> None:
        self.reads.set()
        await super().stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        self.raw = b""
        try:
            while await self.reads.wait() and (data := await reader.read(65536)):
                self.raw += data
                if not self.answered.is_set() and (self.early or len(self.body) >= self.length):
                    writer.write(self.answer)
                    self.answered.set()
        except ConnectionError:
            pass  # that is what `gone` tells
        finally:
            self.gone.set()
            self._open.discard(writer)
            writer.transport.abort()

    @property
    def length(self) -> int:
        return int(self.raw.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    async def has(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.body) < count:
                await asyncio.sleep(0.005)


class Dies(FakeReplica):
    """A replica that dies in the middle of a form."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await reader.readexactly(250_000)
        writer.transport.abort()


async def _never(_call: Call) -> None:
    raise AssertionError("it has a way of its own")


@pytest.fixture
async def taker() -> AsyncIterator[Taker]:
    async with Taker() as made:
        yield made


@pytest.fixture
def uploads(planes: MakePlane) -> Callable[..., Awaitable[Plane]]:
    async def make(**more: object) -> Plane:
        limits = {"stream_uploads_bytes": STREAMED_FROM, "max_body_bytes": 4 << 20, "max_retries": 1, **more}
        return await planes(**limits)

    return make


async def begun(
    plane: Plane, form: bytes = FORM, *, sent: int = 300_000, headers: str = ""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await plane.open()
    writer.write(head(len(form), headers) + form[:sent])
    await writer.drain()
    return reader, writer


async def test_a_form_passes_while_it_arrives_but_for_its_last_piece(uploads: MakePlane, taker: Taker) -> None:
    plane = await uploads()
    plane.route(taker)
    reader, writer = await begun(plane, sent=300_000)
    await taker.has(STREAMED_FROM)
    assert plane.engine.body_bytes < 300_000, "it is not held"
    writer.write(FORM[300_000:-3])
    await taker.has(300_000)
    await asyncio.sleep(0.05)
    assert len(taker.body) < len(FORM) - 3, "the last piece waits for what is judged at the end"
    further = head(len(FORM)) + FORM
    writer.write(FORM[-3:] + further)
    first = await read_reply(reader)
    assert (first.status, first.header("connection")) == (200, None)
    assert taker.body == FORM
    taker.answered.clear()
    assert (await read_reply(reader)).status == 200, "and the connection goes on with what came behind it"
    assert taker.connections == 2
    writer.close()


async def test_a_held_form_and_a_streamed_one_look_the_same_to_the_replica(uploads: MakePlane, taker: Taker) -> None:
    seen = []
    for threshold in (0, STREAMED_FROM):
        plane = await uploads(stream_uploads_bytes=threshold)
        plane.route(taker)
        taker.answered.clear()
        reply = await plane.send(
            head(len(FORM), "x-request-id: same\r\nconnection: close\r\n") + FORM, until_close=True
        )
        assert reply.status == 200
        seen.append(taker.raw)
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (MODEL + b"--b--\r\n", b"twice"),
        (b'--b\r\nContent-Disposition: form-data; name="MODEL"\r\n\r\nlarge\r\n--b--\r\n', b"plain"),
        (b"\r\n--b", b"no end"),
        (b"x\n--b\nContent-Disposition: form-data; name=model\n\nlarge\r\n--b--\r\n", b"no part begins"),
    ],
)
async def test_what_makes_a_form_wrong_at_its_end_never_makes_it_whole_for_a_replica_W1(
    uploads: MakePlane, taker: Taker, end: bytes, why: bytes
) -> None:
    plane = await uploads()
    plane.route(taker)
    form = MODEL + SOUND + end
    reader, writer = await begun(plane, form, sent=len(form))
    reply = await read_reply(reader, until_close=True)
    assert (reply.status, reply.closed) == (400, True)
    assert why in reply.body
    await asyncio.wait_for(taker.gone.wait(), 5)
    assert STREAMED_FROM <= len(taker.body) < taker.length
    writer.close()


async def test_a_form_that_names_its_model_last_is_held(uploads: MakePlane, taker: Taker) -> None:
    plane = await uploads()
    plane.route(taker)
    form = SOUND + MODEL + b"--b--\r\n"
    reader, writer = await begun(plane, form, sent=len(form) - 1)
    await asyncio.sleep(0.1)
    assert taker.connections == 0
    writer.write(form[-1:])
    assert (await read_reply(reader)).status == 200
    assert taker.body == form
    writer.close()


async def test_an_unknown_model_is_told_before_the_form_is_whole_and_the_rest_is_no_request(uploads: MakePlane) -> None:
    plane = await uploads()
    plane.route(models=("other",))
    reader, writer = await begun(plane)
    reply = await read_reply(reader, until_close=True)
    assert (reply.status, reply.header("connection")) in {(404, "close"), (503, "close")}
    writer.write(FORM[300_000:])
    assert reply.raw.count(b"HTTP/1.1") == 1
    writer.close()


async def test_an_early_answer_passes_and_ends_both_connections(uploads: MakePlane, taker: Taker) -> None:
    plane = await uploads()
    taker.early, taker.answer = True, plain(b'{"error":"too long"}', status=b"413 Too Large")
    [endpoint] = plane.route(taker)
    reader, writer = await begun(plane)
    reply = await read_reply(reader, until_close=True)
    assert (reply.status, reply.header("connection"), reply.body) == (413, "close", b'{"error":"too long"}')
    await asyncio.wait_for(taker.gone.wait(), 5)
    assert plane.engine.connector.pool(endpoint).take() is None, "a connection that waits for more is nobody else's"
    writer.close()


async def test_before_the_rest_has_passed_another_replica_may_have_it(uploads: MakePlane, taker: Taker) -> None:
    plane = await uploads()
    async with Taker() as gone:
        nobody = gone.port
    plane.route(nobody, taker)
    for _ in range(2):  # one of them begins with the replica that is gone
        taker.answered.clear()
        reader, writer = await begun(plane, sent=len(FORM))
        assert (await read_reply(reader)).status == 200
        assert taker.body == FORM
        writer.close()


async def test_once_the_rest_has_passed_nobody_else_is_asked(uploads: MakePlane) -> None:
    plane = await uploads()
    async with Dies(_never) as one, Dies(_never) as other:
        plane.route(one, other)
        reader, writer = await begun(plane, sent=len(FORM) - 1)
        reply = await read_reply(reader, until_close=True)
        assert (reply.status, one.connections + other.connections) == (502, 1)
        writer.close()


async def test_a_replica_that_takes_nothing_holds_the_client_and_not_our_memory(
    uploads: MakePlane, taker: Taker
) -> None:
    plane = await uploads(max_body_bytes=256 << 20, write_stall_s=0.6)
    plane.route(taker)
    taker.reads.clear()
    sound = b"x" * (48 << 20)
    form = MODEL + SOUND[:-2] + sound + b"\r\n--b--\r\n"
    reader, writer = await plane.open()
    writer.write(head(len(form)) + form)
    reply = await read_reply(reader, until_close=True)
    assert reply.status == 504
    assert writer.transport.get_write_buffer_size() > 16 << 20, "most of it never left the client"
    writer.transport.abort()


async def test_a_client_that_falls_silent_in_its_form_is_told_and_the_replica_let_go(
    uploads: MakePlane, taker: Taker
) -> None:
    plane = await uploads(body_idle_timeout_s=0.3, first_byte_timeout_s=0.1)
    plane.route(taker)
    reader, writer = await begun(plane)
    reply = await read_reply(reader, until_close=True)
    assert (reply.status, b"body_timeout" in reply.body) == (408, True)
    await asyncio.wait_for(taker.gone.wait(), 5)
    writer.close()


async def test_a_client_that_goes_takes_its_form_with_it(uploads: MakePlane, taker: Taker) -> None:
    plane = await uploads()
    plane.route(taker)
    _, writer = await begun(plane)
    await taker.has(STREAMED_FROM)
    writer.transport.abort()
    await asyncio.wait_for(taker.gone.wait(), 5)
    assert len(taker.body) < len(FORM)


async def test_what_comes_between_two_replicas_is_the_next_ones_and_its_time_has_not_run(
    uploads: MakePlane, taker: Taker
) -> None:
    plane = await uploads(body_idle_timeout_s=0.4)
    async with Taker() as busy:
        busy.early, busy.answer = True, plain(b"{}", status=b"503 Busy")
        _, free = plane.route(busy, taker, limit=1)
        plane.engine.counters.add(free.slot, IN_FLIGHT, 1)  # somebody else's request
        reader, writer = await begun(plane, sent=STREAMED_FROM + 1000)
        async with asyncio.timeout(5):
            while not any(request.queued for request in plane.engine.exchanges):
                await asyncio.sleep(0.01)
        writer.write(FORM[STREAMED_FROM + 1000 : 300_000])
        await asyncio.sleep(0.6)
        plane.engine.counters.add(free.slot, IN_FLIGHT, -1)
        await taker.has(STREAMED_FROM)
        writer.write(FORM[300_000:])
        assert (await read_reply(reader)).status == 200
        assert taker.body == FORM
        writer.close()


async def test_a_form_under_another_name_is_streamed_with_the_new_one(planes: MakePlane, taker: Taker) -> None:
    rules = ModelRules(rules={"m": ModelRule(split={"renamed": 1.0})})
    plane = await planes(rules=rules, stream_uploads_bytes=STREAMED_FROM)
    plane.route(taker, models=("renamed",))
    reader, writer = await begun(plane)
    await taker.has(STREAMED_FROM)
    writer.write(FORM[300_000:])
    assert (await read_reply(reader)).status == 200
    renamed = MODEL.replace(b"Length: 1\r\n\r\nm\r\n", b"Length: 7\r\n\r\nrenamed\r\n")
    assert taker.body == renamed + FORM[len(MODEL) :]
    writer.close()


async def test_any_cut_of_a_form_gives_what_the_whole_gives(uploads: MakePlane, taker: Taker) -> None:
    plane = await uploads(stream_uploads_bytes=400)
    plane.route(taker)
    form = (
        MODEL
        + SOUND[:900]
        + b'\r\n--\r\n-b\r\n--ab\r\n--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--b--\r\n'
    )
    held: Reply = await plane.send(head(len(form), "connection: close\r\n") + form, until_close=True)
    assert held.status == 200
    for at in range(401, len(form), 7):
        taker.answered.clear()
        reader, writer = await plane.open()
        writer.write(head(len(form)) + form[:at])
        await asyncio.sleep(0.002)
        writer.write(form[at:])
        reply = await read_reply(reader)
        assert (reply.status, taker.body) == (200, form), at
        writer.close()


async def test_json_is_held_whatever_its_length(uploads: MakePlane, taker: Taker) -> None:
    plane = await uploads()
    plane.route(taker)
    body = b'{"model":"m","messages":[{"role":"user","content":"%b"}]}' % (b"x" * 300_000)
    whole = request(body)
    reader, writer = await plane.open()
    writer.write(whole[:-1])
    await asyncio.sleep(0.1)
    assert taker.connections == 0
    writer.write(whole[-1:])
    assert (await read_reply(reader)).status == 200
    writer.close()
