"""PURE. How an event stream ended, judged by its last events: finished, with the engine's own error, or cut off.

This is read only where the path's end mark did not come. Some engines send none (InfiniLM's older server, `transformers
serve`), and most end a stream with an error without it (llama.cpp): such streams were not cut off. Not compiled: msgspec
needs the annotations of the classes below, and mypyc keeps none.
"""

from typing import Any

import msgspec

_UNKNOWN_ERROR = 400
"""What an error that names no status counts as: nobody knows whose fault it was."""
_LINE_LIMIT_BYTES = 1 << 20


class _Choice(msgspec.Struct):
    index: Any = 0
    finish_reason: Any = None


class _Event(msgspec.Struct):
    """What is read of an event; `code` and the rest stand under `error`, or beside it (vLLM's older form)."""

    choices: list[_Choice] | None = None
    error: Any = None
    object: Any = None
    type: Any = None
    code: Any = None


_decode = msgspec.json.Decoder(_Event).decode


def own_error(tail: bytes) -> int:
    """The HTTP status that the last event of `tail` stands for if it is the engine's error; 0 if it is none."""
    name = data = b""
    for line in reversed(tail.splitlines()):
        if data and not line:
            break
        field, _, value = line.partition(b":")
        if field == b"data":
            data = value
        elif field == b"event":
            name = value.strip()
    event = _read(data)
    if event is None:
        return _UNKNOWN_ERROR if name == b"error" else 0
    if not (event.error or name == b"error" or "error" in (event.type, event.object)):
        return 0
    code = event.error.get("code") if isinstance(event.error, dict) else event.code
    return code if isinstance(code, int) and 400 <= code <= 599 else _UNKNOWN_ERROR  # noqa: PLR2004 - statuses


def finished(tail: bytes) -> bool:
    """True when the last event of `tail` that tells of choices tells that they are finished."""
    for line in reversed(tail.splitlines()):
        if line.startswith(b"data:"):
            event = _read(line[len(b"data:") :])
            if event is None:
                return False
            if event.choices:
                return all(choice.finish_reason is not None for choice in event.choices)
    return False


class ChoiceTracker:
    """Follows a stream of `expected` choices, each of which ends for itself."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._line = b""
        self._open: dict[int, bool] = {}

    def feed(self, data: bytes) -> None:
        """Take the next piece of the stream, without the framing of chunks."""
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > _LINE_LIMIT_BYTES:
            self._line = b""  # an event of that size tells nothing of choices that a client could want to know
        for line in lines:
            event = _read(line[len(b"data:") :]) if line.startswith(b"data:") else None
            for choice in event.choices or () if event is not None else ():
                if isinstance(choice.index, int) and 0 <= choice.index < self._expected:
                    self._open[choice.index] = choice.finish_reason is None

    @property
    def finished(self) -> bool:
        """True when every choice has its reason to be over."""
        return len(self._open) >= self._expected and not any(self._open.values())


def _read(data: bytes) -> _Event | None:
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
