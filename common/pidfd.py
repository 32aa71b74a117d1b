"""Signals that reach the process that was meant, and no successor of its pid."""

import os
import signal
from collections.abc import Callable


def send(pid: int, number: signal.Signals, is_it: Callable[[], bool]) -> bool:
    """Signal `pid` if `is_it` still knows it then; False when it is gone. The pid cannot change hands in between."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not is_it():
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True
