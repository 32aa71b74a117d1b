"""`python -m router.worker_main FEED_FD COUNTERS_FD SOCKET_FD GIVING_FD TAKING_FD compiled|sources`: a worker's process, started by the master only."""

if __name__ == "__main__":
    import common.quick_start  # noqa: F401 - before all others: see there

import importlib
import signal
import sys

from common import ending
from router import compiled


def main() -> int:
    """Entry point; returns the exit code."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the master decides; a terminal's ^C reaches the whole group
    descriptors = [int(text) for text in sys.argv[1:6]]
    is_compiled = sys.argv[6] == "compiled" and compiled.activate()
    worker = importlib.import_module("router.worker")  # only now: what it imports may come compiled
    return ending.run(lambda: worker.serve(*descriptors, is_compiled=is_compiled))


if __name__ == "__main__":
    sys.exit(main())
