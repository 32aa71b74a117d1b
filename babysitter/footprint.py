"""What processes take of the machine's memory, each shared page counted once among those that share it (PSS)."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil

from babysitter.identity import Identity


def memory_bytes(processes: Iterable[Identity]) -> int:
    """Memory of all of them together; 0 for those that are gone.

    A sum of resident sizes counts the pages that workers share once for each worker. Where the kernel does not tell
    the proportional size (another user's process), the resident size stands for it.
    """
    return sum(_pss_bytes(process.pid) for process in processes)


def _pss_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) << 10
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0
