"""Single keys from a terminal, without Enter, while a screen is live; the terminal is put back whatever happens."""

import asyncio
import os
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def pressed(source: TextIO, take: Callable[[str], None]) -> Iterator[None]:
    """Call `take` with each key; does nothing when `source` is no terminal. Ctrl-C stays an interrupt."""
    if not source.isatty():
        yield
        return
    descriptor = source.fileno()
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()

    def read() -> None:
        typed = os.read(descriptor, 64).decode("utf-8", "ignore")
        if not typed:
            loop.remove_reader(descriptor)
        for key in typed:
            take(key)

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
