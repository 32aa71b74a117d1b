"""Writes a stream whose usage the router asked for and the client did not: without the event that tells it, else byte for byte."""

import re
from typing import Any

import msgspec

from router.proxy.response_writer import ResponseWriter
from router.streams.kept import EVENT_LIMIT_BYTES, end_of_events, payloads

_EVENT = re.compile(rb".+?(?:\n\n|\r\n\r\n|\r\r)", re.DOTALL)
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')


class HidingWriter(ResponseWriter):
    """One response; for the arguments see `ResponseWriter`. Its reads must come without framing."""

    hides = True
    _rest = b""
    """The beginning of an event that is not whole."""
    _hidden = b""

    def body(self, data: bytes, *, framed: bool) -> None:
        """Pass on the events that `data` completes, but for the usage's."""
        if not (self.hides and self._watched) or self._sized:
            super().body(data, framed=framed)
            return
        data = self._rest + data
        end = end_of_events(data)
        if len(data) - end > EVENT_LIMIT_BYTES:
            end = len(data)  # too large to be held; no usage is
        events, self._rest = data[:end], data[end:]
        if b'"usage"' in events and _NO_CHOICES.search(events) is not None:
            events = self._without_usage(events)
        if events:
            super().body(events, framed=False)

    def _without_usage(self, events: bytes) -> bytes:
        passed, at = [], 0
        for found in _EVENT.finditer(events):
            event, at = found[0], found.end()
            if _tells_usage(event):
                self._hidden = event
            else:
                passed.append(event)
        return b"".join(passed) + events[at:]

    def judged(self, status: int) -> int:
        """See `ResponseWriter`; the last event may come without its blank line."""
        if self._rest:
            rest, self._rest = self._rest, b""
            super().body(rest, framed=False)
        return super().judged(status)

    def last_bytes(self) -> bytes:
        """The last bytes that came, with the usage that does not go on."""
        return super().last_bytes() + self._hidden


def _tells_usage(event: bytes) -> bool:
    """Whether that is all it does."""
    if b'"usage"' not in event:
        return False
    for payload in payloads(event):
        try:
            told: Any = msgspec.json.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        return isinstance(told, dict) and told.get("choices") == [] and isinstance(told.get("usage"), dict)
    return False
