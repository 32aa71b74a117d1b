"""The server's parent: a small process that outlives the babysitter (docs/faults/server.md).

`python -I -S shim.py ATTEMPT_DIR READY_FD` reads `spec.json` there, starts the server in a session of its own, writes
`server.json`, closes READY_FD, waits, ends whatever the server left behind, writes `exit.json` and exits. SIGTERM: TERM
to the server's group, the grace, KILL. SIGUSR1: KILL at once. It is a subreaper: every process that the server or its
children start is its descendant for good, and none other is. It holds a lock on `claim` while it lives, so that a
babysitter can tell whether an attempt ever began and whether its shim is still there. Standard library only; it changes rarely.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import sys
import time

MARK = "SUITE_INCARNATION"
WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1}
MOMENT_S, JANITOR_S, LAST_S = 3.0, 0.5, 5.0
"""For leftovers: between TERM and KILL, for a resource tracker to clean up once the others are gone, for KILL to work."""


def main() -> int:
    """One attempt, from claim to exit.json."""
    directory, ready = sys.argv[1], int(sys.argv[2])
    try:
        claim = os.open(f"{directory}/claim", os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return 1  # a babysitter gave this attempt up before we began
    fcntl.flock(claim, fcntl.LOCK_EX)
    with contextlib.suppress(OSError):
        os.write(claim, json.dumps(identity(os.getpid())).encode())
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    os.set_inheritable(ready, False)  # noqa: FBT003 - the only argument there is; the server gets 0, 1, 2 only
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    spec = json.loads(read(f"{directory}/spec.json"))
    os.unlink(f"{directory}/spec.json")  # it holds the environment, and so perhaps secrets
    attempt = {"uuid": spec["uuid"], "started_at": time.time(), "boot_id": boot_id()}
    try:
        pid = spawn(spec)
    except OSError as error:
        ended = {"error": f"cannot start {spec['argv'][0]!r} in {spec['cwd']}: {error.strerror}"}
    else:
        write(directory, "server.json", {**attempt, **identity(pid), "labels": spec["labels"]})
        os.close(ready)
        ended = watch(pid, float(spec["grace_s"]), detaches=spec["detaches"])
    write(directory, "exit.json", {**attempt, **ended, "ended_at": time.time()})
    return 0


def spawn(spec: dict) -> int:  # type: ignore[type-arg] # as it came from JSON
    """Start the server; its descriptors are 0, 1 and 2, and no signal is blocked or ignored in it."""
    os.chdir(spec["cwd"])
    os.environ["PATH"] = spec["env"].get("PATH", os.defpath)
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = (("/dev/null", os.O_RDONLY), (spec["stdout"], append), (spec["stderr"], append))
    actions = [(os.POSIX_SPAWN_OPEN, number, path, flags, 0o600) for number, (path, flags) in enumerate(files)]
    env, argv = {**spec["env"], MARK: spec["uuid"]}, spec["argv"]
    reset = {signal.SIGHUP, signal.SIGPIPE, signal.SIGINT, signal.SIGXFSZ}
    return os.posix_spawnp(argv[0], argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=reset)


def watch(server: int, grace_s: float, *, detaches: bool) -> dict:  # type: ignore[type-arg] # goes into exit.json
    """Wait for the server's end, ending it when told; returns how it ended.

    A command that `detaches` and has ended well leaves the server that it stands for: podman's is its descendant.
    """
    kill_at, moment_s = None, MOMENT_S
    while True:
        left_s = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        received = signal.sigwaitinfo(WATCHED) if left_s is None else signal.sigtimedwait(WATCHED, left_s)
        ended = reap(server)
        if ended and detaches and ended["code"] == 0:
            return {**ended, "detached": True}
        if ended:
            return {**ended, "left": end_leftovers(moment_s)}
        if received is None or received.si_signo == signal.SIGUSR1:
            if received is not None:
                moment_s = 0.0  # whoever wants it gone at once wants all of it gone at once
            send([pid for pid in descendants() if pid == server or not is_janitor(pid)], signal.SIGKILL)
            kill_at = time.monotonic() + 1.0
        elif received.si_signo == signal.SIGTERM and kill_at is None:
            group(server, signal.SIGTERM)
            group(server, signal.SIGCONT)  # a stopped server cannot heed TERM
            kill_at = time.monotonic() + grace_s


def reap(server: int) -> dict:  # type: ignore[type-arg] # goes into exit.json
    """Collect every dead child; how the server ended when it was among them, else an empty table."""
    end = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                break
            if pid == server:
                code = os.waitstatus_to_exitcode(status)
                end = {"code": code if code >= 0 else None, "signal": -code if code < 0 else None}
                end["max_rss_bytes"] = usage.ru_maxrss * 1024
    return end


def end_leftovers(moment_s: float) -> int:
    """End what the server left behind, and those they start meanwhile (A12, W50); returns how many it left.

    TERM first, so that those who can clean up do; KILL after a moment; last of all a resource tracker, which unlinks
    the shared memory of the others when they are gone.
    """
    count = len(descendants())
    asked: set[int] = set()
    rounds = ((moment_s, signal.SIGTERM, False), (JANITOR_S, signal.SIGKILL, True), (LAST_S, signal.SIGKILL, False))
    for limit_s, number, spares in rounds:
        until = time.monotonic() + limit_s
        while (family := descendants()) and time.monotonic() < until:
            if number == signal.SIGTERM:
                fresh = [pid for pid in family if pid not in asked]  # a second TERM may mean: drop everything
                asked.update(fresh)
                send(fresh, signal.SIGTERM)
                send(fresh, signal.SIGCONT)
            else:
                send([pid for pid in family if not (spares and is_janitor(pid))], signal.SIGKILL)
            received = signal.sigtimedwait(WATCHED, 0.02)
            if received is not None and received.si_signo == signal.SIGUSR1:
                break
            reap(0)
    return count


def descendants() -> list[int]:
    """Pids of all live processes that descend from us."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = read(f"/proc/{name}/stat").rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    children.setdefault(int(parent), []).append(int(name))
    pids, queue = [], [os.getpid()]
    while queue:
        fresh = children.get(queue.pop(), [])
        pids += fresh
        queue += fresh
    return pids


def send(pids: list[int], number: int) -> None:
    """Signal those of `pids` that still descend from us once a handle holds them: a pid may change hands, a handle does not."""
    handles = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            handles[pid] = os.pidfd_open(pid)
    ours = descendants()
    for pid, handle in handles.items():
        with contextlib.suppress(OSError):
            if pid in ours:
                signal.pidfd_send_signal(handle, number)
        os.close(handle)


def is_janitor(pid: int) -> bool:
    """True for multiprocessing's (or loky's) resource tracker."""
    try:
        return b"resource_tracker" in read(f"/proc/{pid}/cmdline")
    except OSError:
        return False


def group(server: int, number: int) -> None:
    """Signal the server's process group, if any is left."""
    with contextlib.suppress(OSError):
        os.killpg(server, number)


def identity(pid: int) -> dict:  # type: ignore[type-arg] # goes into server.json
    """What tells this process from every other: boot, pid, start time in ticks since boot."""
    return {"boot_id": boot_id(), "pid": pid, "ticks": int(read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[19])}


def boot_id() -> str:
    """This boot of the machine."""
    return read("/proc/sys/kernel/random/boot_id").decode().strip()


def read(path: str) -> bytes:
    """The whole file."""
    with open(path, "rb") as file:
        return file.read()


def write(directory: str, name: str, content: dict) -> None:  # type: ignore[type-arg] # becomes JSON
    """Write a file whole or not at all; a full disk costs the file, never the server."""
    temporary = f"{directory}/.{name}.tmp-{os.getpid()}"
    with contextlib.suppress(OSError), open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
        os.rename(temporary, f"{directory}/{name}")


if __name__ == "__main__":
    sys.exit(main())
