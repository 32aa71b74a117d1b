"""The end that is known before: SIGUSR1 says that the job, or whatever else runs us, ends so many seconds later.

The replica tells at once that it needs a successor, and goes on. If it is still wanted shortly before the end, it finishes its
requests and stops by itself.
"""

import asyncio
import signal

import structlog

from babysitter.settings import BabysitterSettings
from babysitter.supervisor import Supervisor

log = structlog.get_logger(__name__)
MARGIN_S = 10.0
"""From the last request's end until no process is left."""


def notice() -> asyncio.Event:
    """An event that SIGUSR1 sets from now on; one that came while it was blocked counts."""
    event = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, event.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    return event


async def leave_in_time(
    noticed: asyncio.Event, supervisor: Supervisor, settings: BabysitterSettings, stop: asyncio.Event
) -> None:
    """Wait for the notice, tell of it, and set `stop` when no more time is left than a stop needs."""
    await noticed.wait()
    restarts = settings.babysitter
    left_s = max(0.0, settings.end_notice_s - restarts.drain_timeout_s - restarts.stop_grace_s - MARGIN_S)
    log.warning("replica.ends_soon", ends_in_s=settings.end_notice_s, stops_in_s=left_s)
    supervisor.note_ending()
    await asyncio.sleep(left_s)
    stop.set()
