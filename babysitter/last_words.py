"""PURE: what to show of a server's output when it died: the end of the first traceback, and the last lines (W49).

The first traceback is the cause; those after it, of every process that waited for the first one, say that it failed.
"""

import re
from dataclasses import dataclass

FRAME_LINES = 6
MESSAGE_LINES = 6
TRACEBACK_LIMIT_LINES = 500
LEFT_OUT = "[…]"
_BEGIN = re.compile(r"(?:Exception Group )?Traceback \(most recent call last\):")
_CHAINED = ("During handling of the above", "The above exception was")


def last_words(output: str, limit_bytes: int, *, elsewhere: str = "") -> str:
    """At most `limit_bytes` (UTF-8) of `output`: its last lines, after the end of the first traceback if that lies before them.

    Args:
        output: The output.
        limit_bytes: Room.
        elsewhere: Other output, where the traceback is looked for when `output` has none.
    """
    lines = output.splitlines()
    shown = _last(lines, limit_bytes)
    cause, rest = find_cause(lines), lines
    if cause is None:
        cause = find_cause(elsewhere.splitlines())
    elif cause.first >= len(lines) - len(shown):
        cause = None
    else:
        rest = lines[cause.end :]
    if cause is None:
        return "\n".join(shown)
    head = _cut("\n".join(cause.lines), limit_bytes // 2)
    shown = _last(rest, limit_bytes - len(head.encode()) - len(LEFT_OUT.encode()) - 2)
    return "\n".join([head, *([LEFT_OUT] if len(shown) < len(rest) else []), *shown])


@dataclass(frozen=True, slots=True)
class Cause:
    """The end of a traceback: where its lines begin and end among all, and how they are shown."""

    first: int
    end: int
    lines: list[str]


def find_cause(lines: list[str]) -> Cause | None:
    """The end of the first traceback: some frames, the exception, more of its message.

    Loggers put the same words before every line; a traceback keeps its indentation after them.
    """
    for first, line in enumerate(lines):
        begin = _BEGIN.search(line)
        if begin is None:
            continue
        column, last = begin.start(), first + 1
        while (
            last < len(lines) and last - first < TRACEBACK_LIMIT_LINES and not lines[last][column : column + 1].strip()
        ):
            last += 1
        start = max(first, last - FRAME_LINES)
        end = min(last + 1, len(lines))
        while end < len(lines) and end - last < MESSAGE_LINES and _goes_on(lines[end][column:]):
            end += 1
        return Cause(start, end, ([line, f"  {LEFT_OUT}"] if start > first else []) + lines[start:end])
    return None


def _goes_on(text: str) -> bool:
    return bool(text.strip()) and not text.startswith(_CHAINED) and _BEGIN.search(text) is None


def _last(lines: list[str], room: int) -> list[str]:
    """The last whole lines that `room` bytes hold; the end of the last one when even that is longer."""
    taken: list[str] = []
    room_left = room
    for line in reversed(lines):
        room_left -= len(line.encode()) + (1 if taken else 0)
        if room_left < 0:
            break
        taken.append(line)
    return taken[::-1] if taken or not lines else [_cut(lines[-1], room)]


def _cut(text: str, limit_bytes: int) -> str:
    """The last `limit_bytes` of a text."""
    raw = text.encode()
    return raw[max(0, len(raw) - limit_bytes) :].decode("utf-8", "ignore")
