"""PURE. Server-sent events from bytes, however the network cut them."""

from collections.abc import Iterator
from dataclasses import dataclass

LIMIT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event; `name` is `message` unless the sender gave one."""

    name: str
    data: str
    id: str = ""


class Events:
    """Feed it chunks, get events; comments (keep-alives) are left out."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []
        self._name = ""
        self._id = ""

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """The events that end within `chunk`.

        Raises:
            ValueError: A line that never ends.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LIMIT_BYTES:
            raise ValueError(f"a line of a stream is longer than {LIMIT_BYTES} bytes")
        for raw in lines:
            line = raw.rstrip(b"\r").decode("utf-8", "replace")
            if line:
                self._take(line)
            elif self._data:
                yield ServerSentEvent(self._name or "message", "\n".join(self._data), self._id)
                self._data, self._name = [], ""
            else:
                self._name = ""

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._name = value
            case "id":
                self._id = value
            case _:
                return
