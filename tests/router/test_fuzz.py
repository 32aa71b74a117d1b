"""A grammar of requests, right and wrong, against the oracle of docs/faults.md R01 to R82; and two more parsers on what goes out."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h11
import httptools
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from common.tasks import TaskScope
from router.proxy.chunked import BadChunk, Chunked
from router.proxy.head import BadHead
from router.proxy.parsing import parse_request
from tests.router.fakes import LIMITS, Call, Plane, make_plane, plain

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
EXAMPLES = int(os.environ.get("SVC_FUZZ_EXAMPLES", "150"))
QUIET_S = 0.05
LAST_LOOK_S = 0.01  # a loop that was held lets its timer speak before its sockets: what has arrived is read after it

methods = st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"get", b"CONNECT", b"P\x00ST", b""])
targets = st.sampled_from(
    [b"/x", b"/x?a=b", b"//evil/x", b"http://evil/x", b"/x y", b"*", b"/\xff", b"/x#f", b"/../x", b""]
)
versions = st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b""])
spaces = st.sampled_from([b" ", b" ", b" ", b"  ", b"\t", b""])
line_ends = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n ", b"\r\n\t"])
names = st.sampled_from(
    [
        b"Host",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Connection",
        b"Expect",
        b"X-A",
        b"Content_Length",
        b" Host",
        b"Transfer-Encoding ",
        b"content-length",
        b"",
        b"X\x00",
        b"Upgrade",
        b"TE",
        b"Trailer",
    ]
)
values = st.sampled_from(
    [
        b"a",
        b"0",
        b"5",
        b"+5",
        b"-1",
        b"5, 5",
        b"0x5",
        b"chunked",
        b"Chunked",
        b"gzip, chunked",
        b"chunked, identity",
        b"identity",
        b"\x0bchunked",
        b"close",
        b"keep-alive",
        b"Upgrade",
        b"100-continue",
        b"\xff",
        b"a\x00b",
        b"",
    ]
)
fields = st.tuples(names, st.sampled_from([b": ", b":", b" : ", b""]), values, line_ends).map(b"".join)
bodies = st.sampled_from(
    [
        b"",
        b"hello",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;x=y\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"5\r\nhello\r\n0\r\nX: y\r\n\r\n",
        b"ffffffffffffffffffff\r\n",
        b"3\r\nhello\r\n0\r\n\r\n",
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Mostly well-formed, with a fault or two."""
    line = draw(methods) + draw(spaces) + draw(targets) + draw(spaces) + draw(versions) + draw(line_ends)
    host = draw(st.sampled_from([b"Host: a\r\n", b"Host: a\r\n", b"Host: a\r\n", b""]))
    head = line + host + b"".join(draw(st.lists(fields, max_size=4))) + draw(line_ends)
    return head + draw(bodies) + draw(st.sampled_from([b"", SMUGGLED]))


async def answer(call: Call) -> None:
    await call.send(plain(b"{}"))


class Rig:
    """A loop with a data plane, for tests that Hypothesis drives."""

    def __init__(self, folder: Path) -> None:
        self.loop = uvloop.new_event_loop()
        self.scope = TaskScope("fuzz")
        self.plane: Plane = self.loop.run_until_complete(self._start(folder))

    async def _start(self, folder: Path) -> Plane:
        await self.scope.__aenter__()
        limits = replace(LIMITS, any_path=True, head_timeout_s=0.3)
        plane = await make_plane(limits, self.scope, folder / "control.sock")
        plane.route(await plane.add(answer))
        return plane

    def close(self) -> None:
        self.loop.run_until_complete(self.plane.stop())
        self.loop.run_until_complete(self.scope.close())
        self.loop.close()

    def send(self, raw: bytes, cut: int) -> tuple[list[int], list[Call]]:
        """Statuses that came back and calls that reached the replica."""
        self.plane.replicas[0].calls.clear()
        return self.loop.run_until_complete(self._send(raw, cut)), list(self.plane.replicas[0].calls)

    async def _send(self, raw: bytes, cut: int) -> list[int]:
        reader, writer = await self.plane.open()
        got, wait_s = b"", QUIET_S
        try:
            writer.write(raw[:cut])
            await asyncio.sleep(0)
            writer.write(raw[cut:])
            while True:
                try:
                    data = await asyncio.wait_for(reader.read(65536), wait_s)
                except TimeoutError:
                    if self.plane.engine.exchanges:
                        wait_s = QUIET_S  # an answer is under way
                    elif wait_s == LAST_LOOK_S:
                        break
                    else:
                        wait_s = LAST_LOOK_S
                    continue
                except ConnectionError:
                    break
                if not data:
                    break
                got += data
        finally:
            writer.close()
        return [int(part[:3]) for part in got.split(b"HTTP/1.1 ")[1:]]

    def is_well(self) -> bool:
        """True when a plain request is still answered."""
        plain_request = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        return self.loop.run_until_complete(self.plane.send(plain_request, wait_s=10)).status == 200


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


def framed_as_two(raw: bytes) -> bool:
    """True when the first request ends, by rules stricter than ours, right before the smuggled one."""
    server = h11.Connection(h11.SERVER)
    try:
        server.receive_data(raw)
        while not isinstance(event := server.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return False
    except h11.RemoteProtocolError:
        return False
    return server.trailing_data[0] == SMUGGLED


@settings(max_examples=EXAMPLES, deadline=None)
@given(raw=requests(), cut=st.integers(0, 200))
def test_no_request_is_smuggled_and_nothing_breaks(rig: Rig, raw: bytes, cut: int) -> None:
    statuses, calls = rig.send(raw, cut)
    assert len(calls) <= sum(status < 300 for status in statuses)
    assert all(status < 500 or status == 501 for status in statuses), statuses
    smuggled = sum(call.line.startswith(b"GET /smuggled") for call in calls)
    assert smuggled <= framed_as_two(raw)
    for call in calls:
        assert as_h11(call) == as_httptools(call)
    assert rig.is_well()


def as_h11(call: Call) -> tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(call.head + call.body)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert connection.trailing_data[0] == b""
    return request.method, request.target, [(name.lower(), value) for name, value in request.headers], body


class _Seen:
    def __init__(self) -> None:
        self.url, self.body, self.whole = b"", b"", 0
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole += 1


def as_httptools(call: Call) -> tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]:
    seen = _Seen()
    parser: Any = httptools.HttpRequestParser(seen)
    parser.feed_data(call.head + call.body)
    assert seen.whole == 1
    return parser.get_method(), seen.url, seen.fields, seen.body


@settings(max_examples=EXAMPLES * 4, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_a_bad_head(raw: bytes) -> None:
    try:
        head = parse_request(raw + b"\r\n\r\n")
    except BadHead:
        return
    assert raw.startswith(head.method)


@settings(max_examples=EXAMPLES * 4, deadline=None)
@given(payloads=st.lists(st.binary(min_size=1, max_size=40), max_size=6), data=st.data())
def test_chunks_decode_the_same_however_they_are_cut(payloads: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in payloads) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    chunked, out = Chunked(), b""
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        piece = raw[start:end]
        if not chunked.passes_whole(piece):
            out += b"".join(chunked.payload(piece))
        else:
            again = Chunked()
            out += b"".join(again.payload(piece))
    assert (out, chunked.ended, chunked.surplus) == (b"".join(payloads), True, b"")


def payload_of(pieces: list[bytes]) -> tuple[bytes, bool, bytes] | None:
    """What `pieces` carry, whether they end, and what follows; `None` when they are no chunks."""
    chunked, payload = Chunked(), b""
    for index, piece in enumerate(pieces):
        try:
            payload += b"".join(chunked.payload(piece))
        except BadChunk:
            return None
        if chunked.ended:
            return payload, True, chunked.surplus + b"".join(pieces[index + 1 :])
    return payload, False, b""


CHUNK_BYTES = st.lists(
    st.sampled_from([b"2\r\nxy\r\n", b"0\r\n\r\n", b"0", b"1", b"a", b"\r\n", b"\r", b"\n", b";x", b"xy", b" "]),
    max_size=12,
).map(b"".join)


@settings(max_examples=EXAMPLES * 4, deadline=None)
@given(st.binary(max_size=60) | CHUNK_BYTES, st.integers(0, 60))
def test_any_bytes_are_the_same_chunks_or_bad_chunks_however_cut(raw: bytes, cut: int) -> None:
    whole = payload_of([raw])
    assert payload_of([raw[:cut], raw[cut:]]) == whole
    try:
        passes = Chunked().passes_whole(raw)
    except BadChunk:
        assert whole is None
    else:
        assert not passes or whole is not None
