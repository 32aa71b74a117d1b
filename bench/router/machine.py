"""Processes of the comparison: started on one core each, measured as whole trees, ended by their ids."""

import contextlib
import os
import platform
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

STOP_S = 10.0


class BenchError(Exception):
    """Something needed for the comparison is missing or does not work; the text says what and where to look."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds of a process tree since it began."""

    user_s: float
    system_s: float

    def __sub__(self, earlier: "Cpu") -> "Cpu":
        return Cpu(self.user_s - earlier.user_s, self.system_s - earlier.system_s)

    @property
    def all_s(self) -> float:
        """User and system."""
        return self.user_s + self.system_s


def tree(pid: int) -> list[psutil.Process]:
    """A process and its descendants; empty when it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_of(pid: int) -> Cpu:
    """CPU of a process tree, with that of children it has reaped."""
    user = system = 0.0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            user += times.user + times.children_user
            system += times.system + times.children_system
    return Cpu(user, system)


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of one process, to the nanosecond: `cpu_of` counts ticks of 10 ms."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def tree_cpu_s(pid: int) -> float:
    """The same of a process and those that it has started, as far as they live."""
    total = 0.0
    for process in tree(pid):
        with contextlib.suppress(OSError):
            total += cpu_s(process.pid)
    return total


def memory_bytes(pid: int) -> int:
    """Proportional memory (PSS) of a process tree; memory of the kernel's sockets is not in it."""
    total = 0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


@contextlib.contextmanager
def started(
    command: Sequence[str | Path],
    *,
    core: int | str,
    log: Path,
    folder: Path,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on one core (or several, as taskset lists them) in a session of its own (so that ^C ends it through us), and end it with its tree."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *map(str, command)],
            cwd=folder,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL to whatever of its tree is left. psutil checks that an id still means the same process."""
    known = tree(process.pid)
    process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(known, timeout=STOP_S)
    for straggler in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            straggler.kill()
    process.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_answers(port: int, request: bytes, process: subprocess.Popen[bytes], log: Path, within_s: float) -> None:
    """Wait until `request` is answered with 200.

    Raises:
        BenchError: It is not, or the process ended; shows the last of its log.
    """
    deadline = time.monotonic() + within_s
    said = b"nothing"
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as connection:
            connection.settimeout(5)
            connection.sendall(request)
            said = connection.recv(4096)
            if said.startswith(b"HTTP/1.1 200"):
                return
        time.sleep(0.2)
    last = log.read_text(errors="replace")[-1500:]
    raise BenchError(f"port {port} does not answer with 200 (said {said[:120]!r}); {log} ends with:\n{last}")


def raise_file_limit() -> int:
    """Raise the limit of open files as far as it goes, for us and what we start; returns it."""
    import resource  # noqa: PLC0415 - used here only

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def describe() -> str:
    """The machine in one line."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_gb = psutil.virtual_memory().total / 2**30
    return (
        f"{model}, {os.cpu_count()} cores, {memory_gb:.0f} GB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def load_average() -> str:
    """The load of the last minute: above about 2 while we run, somebody else works on this machine too."""
    return f"{os.getloadavg()[0]:.1f}"
