"""PURE: a span of a trace, and the `traceparent` header that joins spans of different programs (W3C Trace Context).

Spans are made after the fact, from times that are known anyway; `common.tracing` sends them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_VERSION = b"ff"
_SAMPLED = 1
TRACE_BITS, SPAN_BITS = 128, 64
Kind = Literal["internal", "server", "client"]


@dataclass(frozen=True, slots=True)
class Parent:
    """What a `traceparent` header says: the trace, the caller's span, and whether anybody keeps it."""

    trace_id: int
    span_id: int
    sampled: bool


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took a while. Times are seconds since the epoch; `error` says what went wrong, if anything did."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int | None
    began_at: float
    ended_at: float
    kind: Kind = "internal"
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    error: str | None = None


def parse_traceparent(value: bytes) -> Parent | None:
    """The header's content; None where it is malformed, which the standard treats like none."""
    match = _TRACEPARENT.fullmatch(value.strip())
    if match is None or match[1] == _NO_VERSION or (match[1] == b"00" and match[5]):
        return None
    trace_id, span_id = int(match[2], 16), int(match[3], 16)
    return Parent(trace_id, span_id, bool(int(match[4], 16) & _SAMPLED)) if trace_id and span_id else None


def traceparent(trace_id: int, span_id: int) -> bytes:
    """The header for a request made within the span, which is kept."""
    return b"00-%032x-%016x-01" % (trace_id, span_id)
