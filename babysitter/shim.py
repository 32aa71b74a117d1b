"""The server's parent: a small process that outlives the babysitter (FAILURES.md, supervision recipe).

`python -I -S shim.py ATTEMPT_DIR READY_FD` reads `spec.json` there, starts the server in a session of its own, writes
`server.json`, closes READY_FD, waits, ends whatever the server left behind, writes `exit.json` and exits. SIGTERM: TERM to the server's
group, the grace, KILL. SIGUSR1: KILL at once. It holds a lock on `claim` while it lives, so that a babysitter can tell
whether an attempt ever began and whether its shim is still there. Standard library only; it changes rarely.
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
    known = {"uuid": spec["uuid"], "started_at": time.time()}
    try:
        pid = spawn(spec)
    except OSError as error:
        ended = {"error": f"cannot start {spec['argv'][0]!r} in {spec['cwd']}: {error.strerror}"}
    else:
        write(directory, "server.json", {**known, **identity(pid), "labels": spec["labels"]})
        os.close(ready)
        ended = watch(pid, float(spec["grace_s"]), spec["uuid"])
    write(directory, "exit.json", {**known, **ended, "ended_at": time.time()})
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


def watch(server: int, grace_s: float, uuid: str) -> dict:  # type: ignore[type-arg] # goes into exit.json
    """Wait for the server's end, ending it when told; returns how it ended."""
    kill_at = None
    while True:
        left_s = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        told = signal.sigwaitinfo(WATCHED) if left_s is None else signal.sigtimedwait(WATCHED, left_s)
        ended = reap(server)
        if ended:
            end_leftovers(f"{MARK}={uuid}".encode())
            return ended
        if told is None or told.si_signo == signal.SIGUSR1:
            group(server, signal.SIGKILL)
            kill_at = time.monotonic() + 1.0
        elif told.si_signo == signal.SIGTERM and kill_at is None:
            group(server, signal.SIGTERM)
            group(server, signal.SIGCONT)  # a stopped server cannot heed TERM
            kill_at = time.monotonic() + grace_s


def reap(server: int) -> dict:  # type: ignore[type-arg] # goes into exit.json
    """Collect every dead child; how the server ended when it was among them, else an empty table."""
    found = {}
    with contextlib.suppress(ChildProcessError):
        while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if dead.si_pid == server:
                group(server, signal.SIGKILL)  # before its pid, and so its group's, can be given to a stranger
            _, status, usage = os.wait4(dead.si_pid, 0)
            if dead.si_pid == server:
                code = os.waitstatus_to_exitcode(status)
                found = {"code": code if code >= 0 else None, "signal": -code if code < 0 else None}
                found["max_rss_bytes"] = usage.ru_maxrss * 1024
    return found


def end_leftovers(mark: bytes) -> None:
    """Kill every process that carries the attempt's mark (A12)."""
    for _ in range(50):
        left = [int(name) for name in os.listdir("/proc") if name.isdigit() and carries(int(name), mark)]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(OSError):  # it may end meanwhile
                handle = os.pidfd_open(pid)
                if carries(pid, mark):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                os.close(handle)
        time.sleep(0.02)
        reap(0)


def carries(pid: int, mark: bytes) -> bool:
    """True when the environment of `pid` has `mark`."""
    try:
        return mark in read(f"/proc/{pid}/environ").split(b"\0")
    except OSError:
        return False


def group(server: int, number: int) -> None:
    """Signal the server's process group, if any is left."""
    with contextlib.suppress(OSError):
        os.killpg(server, number)


def identity(pid: int) -> dict:  # type: ignore[type-arg] # goes into server.json
    """What tells this process from every other: boot, pid, start time in ticks since boot."""
    boot = read("/proc/sys/kernel/random/boot_id").decode().strip()
    return {"boot_id": boot, "pid": pid, "ticks": int(read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[19])}


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
