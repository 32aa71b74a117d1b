"""Which connections to a server are being served: the kernel knows when each was last written and read (`tcp_info`).

A connection is kept open between two requests, by routers and by anybody's client, and a drain that waited for those would
last as long as they like. One whose last bytes were the server's, some seconds ago, waits for nothing.

Layouts and numbers: linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, linux/tcp.h.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

QUIET_S = 5.0
"""A stream may pause between two tokens; who has been sent nothing for so long, and has asked nothing since, is idle."""
LAST_WORDS_S = 0.5
"""The same where the engine says that it has no request: an answer's end may still be on its way from the server."""
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x301
_DONE, _ERROR = 3, 2
_INFO = 2
_ESTABLISHED = 1
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI2s2s32xIII")
_MESSAGE = struct.Struct("=BBBB2s2s32xIIIIIIII")
_ATTRIBUTE = struct.Struct("=HH")
_LAST_SENT, _LAST_RECEIVED, _LAST_ACKNOWLEDGED, _BYTES_RECEIVED = 44, 52, 56, 128
_PIECE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Connection:
    """An established connection, seen from the server; times are how long ago, in seconds."""

    remote_port: int
    unread_bytes: int
    unsent_bytes: int
    asked_bytes: int
    sent_s: float
    received_s: float
    acknowledged_s: float
    """When anything came at last: a question, or a word that an answer has come."""

    def is_idle(self, *, at_rest: bool = False) -> bool:
        """Answered, and asked nothing since; or never used. `at_rest`: the engine says that it has no request.

        The kernel counts in ticks of some milliseconds: of what was read and written in one of them, the question may have
        come last, and its answer may be long in coming. A question says itself that what was written before has come; where
        that was said later, the answer was the last.
        """
        if self.unread_bytes or self.unsent_bytes or self.sent_s <= (LAST_WORDS_S if at_rest else QUIET_S):
            return False
        if self.received_s == self.sent_s and self.asked_bytes:
            return at_rest or self.acknowledged_s < self.sent_s
        return not self.asked_bytes or self.received_s > self.sent_s


def established(port: int) -> list[Connection]:
    """Connections to this machine's `port`.

    Raises:
        OSError: The kernel does not tell.
    """
    return [one for family in (socket.AF_INET, socket.AF_INET6) for one in _ask(family, port)]


def _ask(family: int, port: int) -> Iterator[Connection]:
    request = _REQUEST.pack(
        family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 1 << _ESTABLISHED, _net(port), b"\0\0", 0, 0, 0
    )
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        kernel.send(header + request)
        while True:
            data = kernel.recv(_PIECE_BYTES)
            while data:
                length, kind, _, _, _ = _HEADER.unpack_from(data)
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    raise OSError(-struct.unpack_from("=i", data, _HEADER.size)[0], "sock_diag")
                yield _read(data[_HEADER.size : length])
                data = data[(length + 3) & ~3 :]


def _read(message: bytes) -> Connection:
    fields = _MESSAGE.unpack_from(message)
    unread, unsent = fields[10], fields[11]
    remote, info, at = int.from_bytes(fields[5], "big"), b"", _MESSAGE.size
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == _INFO:
            info = message[at + _ATTRIBUTE.size : at + length]
        at += (max(length, _ATTRIBUTE.size) + 3) & ~3
    if len(info) < _BYTES_RECEIVED + 8:
        raise OSError(errno.ENOTSUP, "sock_diag tells no tcp_info")
    times_s = [
        struct.unpack_from("=I", info, offset)[0] / 1000 for offset in (_LAST_SENT, _LAST_RECEIVED, _LAST_ACKNOWLEDGED)
    ]
    [asked] = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
    return Connection(remote, unread, unsent, asked, *times_s)


def _net(port: int) -> bytes:
    return port.to_bytes(2, "big")
