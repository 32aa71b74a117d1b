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
