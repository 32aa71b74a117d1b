import pytest

from router.proxy.chunked import BadChunk, Chunked, frame


@pytest.mark.parametrize("size", [b"5", b"05", b"000000000000005"])
def test_plain_sizes_pass_unchanged(size: bytes) -> None:
    assert Chunked().passes_whole(size + b"\r\nhello\r\n")
    assert Chunked().passes_whole(size + b"\r\nhello\r\n" + frame(b"x" * 0xABC))


@pytest.mark.parametrize(
    "size", [b"", b"+5", b" 5", b"5 ", b"5;x", b"0x5", b"5_0", b"0000000000000005", b"0" * 70000, b"g"]
)
def test_any_other_line_is_read_the_careful_way(size: bytes) -> None:
    assert not Chunked().passes_whole(size + b"\r\nhello\r\n")


@pytest.mark.parametrize("data", [b"5", b"5\r", b"5\r\n", b"5\r\nhel", b"5\r\nhello", b"5\r\nhello\r", b"0", b"0\r\n"])
def test_half_a_chunk_does_not_pass(data: bytes) -> None:
    assert not Chunked().passes_whole(data)


def test_data_behind_a_chunk_that_is_no_line_end_is_refused() -> None:
    with pytest.raises(BadChunk):
        Chunked().passes_whole(b"5\r\nhelloXX")


TRAILERS = [
    b"",
    b"x-checksum: abc\r\n",
    b"Server-Timing: a;dur=1\r\nExpires:\r\nX-Note: \xff\t!\r\n",
    b"a:" + b"b" * 8000 + b"\r\n",
]


@pytest.mark.parametrize("trailers", TRAILERS)
@pytest.mark.parametrize("step", [1, 2, 5, 100_000])
def test_trailers_and_extensions_are_discarded_in_any_split_W7(trailers: bytes, step: int) -> None:
    data = b"5;chunk-signature=" + b"f" * 64 + b'\r\nhello\r\n1 ; a="b;c"\r\n!\r\n0;last\r\n' + trailers + b"\r\nGET /"
    chunked, payload = Chunked(), b""
    for start in range(0, len(data), step):
        if chunked.ended:
            break
        payload += b"".join(chunked.payload(data[start : start + step]))
    assert chunked.ended
    assert payload == b"hello!"
    assert b"GET /".startswith(chunked.surplus)


@pytest.mark.parametrize(
    "trailers",
    [
        b"no colon\r\n",
        b"a: b\r\n folded\r\n",
        b"a b: c\r\n",
        b": nameless\r\n",
        b"a: b\nc: d\r\n",
        b"a: \x00\r\n",
        b"Content-Length: 9\r\n",
        b"transfer-encoding: chunked\r\n",
        b"a:" + b"b" * 9000 + b"\r\n",
        b"a: b\r\n" * 2000,
    ],
)
@pytest.mark.parametrize("step", [1, 100_000])
def test_trailers_that_are_no_fields_or_too_many_are_refused_W7(trailers: bytes, step: int) -> None:
    with pytest.raises(BadChunk):
        _read(b"0\r\n" + trailers + b"\r\n", step)


def _read(data: bytes, step: int) -> None:
    chunked = Chunked()
    for start in range(0, len(data), step):
        chunked.payload(data[start : start + step])


def test_whole_chunks_before_trailers_are_not_passed_twice_W7() -> None:
    chunked = Chunked()
    assert not chunked.passes_whole(b"5\r\nhello\r\n0\r\na: b\r\n\r\n")
    assert chunked.payload(b"5\r\nhello\r\n0\r\na: b\r\n\r\n") == [b"hello"]
    assert chunked.ended
