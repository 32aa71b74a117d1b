"""Processes: started in a session of their own, recognised by more than their pid, ended by signal.

A pid alone proves nothing: pids are used again, and a stranger must never be ended. Ours has the pid that was written
down, our uuid in its environment (which its children inherit), and the module that we told it to run (which they do not).
"""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from common import own_python, pidfd
from common.clock import SystemClock, iso
from ctl.launcher.plan import Part
from ctl.launcher.store import Started, Store

MARK = "SVCCTL_MARK"
LOG_LIMIT_BYTES = 64 << 20
"""A log larger than this is put aside before the next start."""
POLL_S = 0.1
REAP_TIMEOUT_S = 5.0
PROJECT = own_python.ROOT
IS_CHECKOUT = (PROJECT / "pyproject.toml").is_file()
"""True when the packages lie in a source tree: its files' paths are relative to its folder."""
HAS_AGENT = (PROJECT / "babysitter" / "agent" / "__main__.py").is_file()


def spawn(part: Part, store: Store, environ: Mapping[str, str]) -> Started:
    """Start `part` detached, its output in the log; remembered before this returns."""
    mark = uuid.uuid4().hex
    log = store.logs / f"{part.name}.log"
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    home = Path(part.config).parent if part.config else store.root
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own modules, with words of ours
            own_python.command(part.module, *part.args),
            cwd=PROJECT if IS_CHECKOUT else home,
            env={**own_python.environment(environ), MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    started = Started(
        name=part.name,
        kind=part.kind,
        module=part.module,
        pid=process.pid,
        mark=mark,
        url=part.url,
        port=part.port,
        serves=part.serves,
        log=str(log),
        started_at=iso(SystemClock().utcnow()),
        config=part.config,
    )
    store.put(started)
    _children[process.pid] = process
    return started


_children: dict[int, "subprocess.Popen[bytes]"] = {}
"""Processes started by this run, so that one that ends at once is reaped and its exit code known."""


def reap(started: Started) -> int | None:
    """Wait for a process that is going, when it is a child of this run; how it ended."""
    child = _children.pop(started.pid, None)
    if child is not None:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(REAP_TIMEOUT_S)
    return None


def find(started: Started) -> psutil.Process | None:
    """The live process, if it is ours."""
    child = _children.get(started.pid)
    if child is not None and child.poll() is not None:
        return None
    try:
        process = psutil.Process(started.pid)
        if child is not None:
            # Nobody else can have the pid of a child that was not waited for; for a moment after exec the kernel shows
            # neither its words nor its environment.
            return process
        if process.status() == psutil.STATUS_ZOMBIE or process.environ().get(MARK) != started.mark:
            return None
        words = process.cmdline()
    except (psutil.Error, OSError):
        return None
    return process if any(words[at : at + 2] == ["-m", started.module] for at in range(len(words))) else None


def listens(process: psutil.Process, port: int) -> bool:
    """The process, or a child of it, listens on `port`: a stranger's answer there proves nothing about ours."""
    family = [process]
    with suppress(psutil.Error):
        family += process.children(recursive=True)
    for member in family:
        with suppress(psutil.Error):
            for connection in member.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                    return True
    return False


def end(chosen: Sequence[Started], store: Store, timeout_s: float, tell: Callable[[Started, str], None]) -> bool:
    """SIGTERM to all of `chosen`, SIGKILL to what is left after `timeout_s`; False when something had to be killed."""
    waiting: dict[str, Started] = {}
    for started in chosen:
        if send(started, signal.SIGTERM):
            waiting[started.name] = started
        else:
            tell(started, "was not running")
            store.forget(started.name)
    deadline = time.monotonic() + timeout_s
    clean = True
    while waiting:
        for name, started in list(waiting.items()):
            how = "stopped"
            if find(started) is not None:
                if time.monotonic() < deadline:
                    continue
                clean = not send(started, signal.SIGKILL) and clean
                how = f"killed, because it did not end within {timeout_s:.0f} s"
            reap(started)
            tell(started, how)
            store.forget(name)
            del waiting[name]
        if waiting:
            time.sleep(POLL_S)
    return clean


def send(started: Started, number: signal.Signals) -> bool:
    """Signal a process that is ours; False when there is none."""
    return pidfd.send(started.pid, number, lambda: find(started) is not None)


def log_tail(started: Started, lines: int = 8) -> list[str]:
    """The last lines that it wrote."""
    try:
        with Path(started.log).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - (16 << 10)))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []
