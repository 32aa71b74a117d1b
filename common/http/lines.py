"""Lines of a stream that never ends: one JSON text each, of any length up to a bound."""

from collections.abc import AsyncIterator

import aiohttp


async def read_lines(stream: aiohttp.StreamReader, limit_bytes: int) -> AsyncIterator[bytes]:
    """Lines without their newline, empty ones left out (`readline` stops at 512 KiB; docs/faults.md D15).

    Raises:
        ValueError: A line is longer than `limit_bytes`.
        aiohttp.ClientError: The connection broke.
    """
    pending: list[bytes] = []
    size = 0
    async for chunk in stream.iter_any():
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            line = b"".join((*pending, part))
            pending.clear()
            size = 0
            if line:
                yield line
        if rest:
            pending.append(rest)
            size += len(rest)
            if size > limit_bytes:
                raise ValueError(f"a line is longer than {limit_bytes} bytes")
