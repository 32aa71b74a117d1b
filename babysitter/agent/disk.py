"""What the disk refuses is tried again until it does not (B9)."""

import asyncio
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)
RETRY_S = 5.0


async def until_allowed(work: Callable[[], None], replica_id: str) -> None:
    """Run `work` in a thread, again and again until it raises no OSError."""
    while True:
        try:
            await asyncio.to_thread(work)
        except OSError as error:
            log.error("replica.disk_refuses", replica=replica_id, reason=str(error))
            await asyncio.sleep(RETRY_S)
        else:
            return
