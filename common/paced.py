"""Going through many things without keeping everybody else waiting."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")
PIECE_S = 0.005
"""Work done before others have their turn; a tenth of what a client notices."""


async def paced(items: Iterable[T]) -> AsyncIterator[T]:
    """`items`, with a turn for the loop's other tasks every few milliseconds. What they change is the caller's concern."""
    until = time.perf_counter() + PIECE_S
    for item in items:
        yield item
        if time.perf_counter() >= until:
            await asyncio.sleep(0)
            until = time.perf_counter() + PIECE_S
