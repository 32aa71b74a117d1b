"""`traceparent`, read and written as W3C Trace Context says."""

import pytest

from common.span import Parent, parse_traceparent, traceparent

GOOD = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
IDS = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7


@pytest.mark.parametrize(
    ("given", "sampled"),
    [
        (GOOD, True),
        (GOOD[:-2] + b"00", False),
        (GOOD[:-2] + b"03", True),
        (b"  " + GOOD + b" ", True),
        (b"cc" + GOOD[2:] + b"-what-comes-later", True),
    ],
)
def test_a_valid_header_gives_trace_span_and_whether_it_is_kept(given: bytes, sampled: bool) -> None:  # noqa: FBT001 - a row
    assert parse_traceparent(given) == Parent(*IDS, sampled)


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"ff" + GOOD[2:],
        GOOD + b"-more",
        GOOD.upper(),
        GOOD[:-1],
        b"00-" + b"0" * 32 + GOOD[35:],
        GOOD[:36] + b"0" * 16 + b"-01",
        b"00-xyz",
    ],
)
def test_a_malformed_header_counts_as_none(given: bytes) -> None:
    assert parse_traceparent(given) is None


def test_what_is_written_is_read() -> None:
    assert traceparent(*IDS) == GOOD
    assert parse_traceparent(traceparent(1, 2)) == Parent(1, 2, sampled=True)
