"""Calls that may hang for ever, such as a driver's or those of a dead file server: each in a thread that nobody joins."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class Aside:
    """One call at a time; while one hangs the next fails at once, so that threads do not pile up.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None

    async def call(self, work: Callable[[], T], *, timeout_s: float) -> T:
        """What `work` returns or raises.

        Raises:
            TimeoutError: It takes longer than `timeout_s`, or an earlier one still hangs.
        """
        async with asyncio.timeout(timeout_s):
            while self._thread is not None and self._thread.is_alive():  # noqa: ASYNC110 - a thread tells no loop
                await asyncio.sleep(POLL_S)
            future: Future[T] = Future()
            future.set_running_or_notify_cancel()
            self._thread = threading.Thread(target=_run, args=(work, future), name=self._name, daemon=True)
            self._thread.start()
            return await asyncio.wrap_future(future)


POLL_S = 0.02


def _run(work: Callable[[], T], future: Future[T]) -> None:
    try:
        outcome = work()
    except Exception as error:  # noqa: BLE001 - handed on to whoever waits
        future.set_exception(error)
    else:
        future.set_result(outcome)
