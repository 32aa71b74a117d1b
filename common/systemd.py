"""What systemd and a service tell each other: ready or not, the journal's priorities, sockets that are handed over.

A dozen lines each, and no library that is kept has all three. All of it is told to one process by its environment, and is
not for those that it starts: `PRIVATE` names what they may not inherit (sd_notify(3), sd_listen_fds(3), sd-daemon(3),
systemd.exec(5), "JOURNAL_STREAM").
"""

import os
import socket
import sys
import time

PRIVATE = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_FIRST_FD = 3
_PRIORITIES = {"critical": 2, "error": 3, "exception": 3, "warning": 4, "info": 6, "debug": 7}
_INFO = 6


def ready() -> None:
    """The service serves, or serves by what it read again."""
    _notify("READY=1")


def reloading() -> None:
    """Settings are read again; `ready` follows."""
    _notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """The service was told to end, and lets finish what is under way."""
    _notify("STOPPING=1")


def _notify(text: str) -> None:
    """Tell the service manager, where there is one. One that does not listen changes nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    where = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.connect(where)
            manager.sendall(text.encode())
    except OSError as error:
        sys.stderr.write(f"systemd cannot be told {text.split(maxsplit=1)[0]!r}: {error}\n")


def has_journal() -> bool:
    """True when standard error is the journal; false for a file or a pipe, whatever an ancestor had."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def priority(level: str) -> str:
    """What a line of that level begins with in the journal."""
    return f"<{_PRIORITIES.get(level, _INFO)}>"


def sockets() -> list[socket.socket]:
    """Listening sockets that a socket unit hands over; each call gives others of the same."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    return [socket.socket(fileno=os.dup(_FIRST_FD + index)) for index in range(count)]
