"""A process's event loop, which ends when the work is over.

A look-up of a name cannot be called off. While the DNS does not answer, one takes half a minute, and a loop (its threads, and
those of libuv) is not closed before the last has come back. Nobody waits for it then.
"""

import gc
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

CLOSING_S = 2.0
"""Closing a loop takes milliseconds."""


def run(work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run `work` on uvloop; returns its exit code, or ends the process with it when the loop cannot be closed."""
    gc.freeze()  # what is loaded by now stays, and is not looked through for garbage
    gc.enable()  # `quick_start.py`
    watch: list[threading.Timer] = []

    async def whole() -> int:
        code = await work()
        watch.append(threading.Timer(CLOSING_S, _leave, (code,)))
        watch[0].daemon = True
        watch[0].start()
        return code

    try:
        return uvloop.run(whole())
    finally:
        for timer in watch:
            timer.cancel()


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
