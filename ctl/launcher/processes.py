"""Processes: started in a session of their own, found again, ended by signal."""

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from common import log_tail, own_python, pidfd
from ctl.launcher.plan import Part
from ctl.launcher.state_dir import LAUNCHED_AS, Launched, StateDir

LOG_LIMIT_BYTES = 64 << 20
"""A log larger than this is put aside before the next start."""
POLL_S = 0.1
REAP_TIMEOUT_S = 5.0
TAIL_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class _Child:
    """A process that this run started: its end is seen here and nowhere else. `log_from` is its log's size before."""

    process: "subprocess.Popen[bytes]"
    log_from: int


_children: dict[int, _Child] = {}


def spawn(part: Part, state: StateDir, environ: Mapping[str, str], folder: Path) -> Launched:
    """Start `part` detached, in `folder`, its output in the log; remembered before this returns."""
    log = state.logs / part.log
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    variable, value = state.mark(part.name)
    launched_as = f"{part.ports[0]} {part.url} {part.serves}"
    with log.open("ab") as output:
        log_from = output.tell()
        process = subprocess.Popen(  # noqa: S603 - our own modules, with words of ours
            own_python.command(part.module, *part.args),
            cwd=folder,
            env={**own_python.environment(environ), variable: value, LAUNCHED_AS: launched_as},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _children[process.pid] = _Child(process, log_from)
    return state.put(part, process.pid)


def reap(launched: Launched) -> int | None:
    """Wait for a process that is going, when it is a child of this run; how it ended."""
    child = _children.get(launched.pid)
    if child is not None:
        with suppress(subprocess.TimeoutExpired):
            return child.process.wait(REAP_TIMEOUT_S)
    return None


def find(launched: Launched) -> psutil.Process | None:
    """The live process, if it is ours.

    Nobody else can have the pid of a child that was not waited for; for a moment after exec the kernel shows neither its
    words nor its environment.
    """
    child = _children.get(launched.pid)
    is_ours = launched.is_ours() if child is None else child.process.poll() is None
    try:
        return psutil.Process(launched.pid) if is_ours else None
    except psutil.Error:
        return None


def end(chosen: Sequence[Launched], state: StateDir, timeout_s: float, tell: Callable[[Launched, str], None]) -> bool:
    """SIGTERM to all of `chosen`, SIGKILL to what is left after `timeout_s`; False when something had to be killed."""
    waiting: dict[str, Launched] = {}
    for launched in chosen:
        if send(launched, signal.SIGTERM):
            waiting[launched.name] = launched
        else:
            tell(launched, "was not running")
            state.forget(launched.name)
    deadline = time.monotonic() + timeout_s
    clean = True
    while waiting:
        for name, launched in list(waiting.items()):
            how = "stopped"
            if find(launched) is not None:
                if time.monotonic() < deadline:
                    continue
                clean = not send(launched, signal.SIGKILL) and clean
                how = f"killed, because it did not end within {timeout_s:.0f} s"
            reap(launched)
            tell(launched, how)
            state.forget(name)
            del waiting[name]
        if waiting:
            time.sleep(POLL_S)
    return clean


def send(launched: Launched, number: signal.Signals) -> bool:
    """Signal a process that is ours; False when there is none."""
    return pidfd.send(launched.pid, number, lambda: find(launched) is not None)


def last_lines(launched: Launched, count: int) -> list[str]:
    """The last lines that it wrote, as far as this run started it: since then."""
    child = _children.get(launched.pid)
    text = log_tail.tail(Path(launched.log), TAIL_BYTES, since=child.log_from if child else 0)
    return [line for line in text.splitlines() if line.strip()][-count:]
