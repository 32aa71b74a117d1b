"""How long a node takes until it serves, what its processes weigh, and how long svcctl lets wait.

    python bench/start.py [--repetitions 5] [--json FILE]

Starts demo nodes on loopback, each in a folder of its own with free ports, by `svcctl up --demo` and by `script/launch_all.sh`. The
clock runs from the command to the first 200 of a chat through the router, which is asked every 20 ms. Memory is each process's
share (PSS in /proc/PID/smaps_rollup) in the first of these nodes, a few seconds after that. svcctl's commands are run without a service.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # a script's own folder comes first otherwise, and holds a `router` that is not the router

from bench.router.figures import Bound, bound_table  # noqa: E402 - see above
from bench.router.machine import describe, load_average  # noqa: E402

SERVES_S = 3.0
COMMAND_S = 0.2
MEMORY_MB = {"babysitter": 32, "agent": 45, "registry": 45, "router's worker": 40, "shim": 9}
"""Bounds; what has none is shown beside them."""
KINDS = (
    ("router.worker_main", "router's worker"),
    ("babysitter.agent", "agent"),
    ("shim.py", "shim"),
    ("babysitter.mock", "mock server"),
    ("babysitter", "babysitter"),
    ("registry", "registry"),
    ("router", "router's master"),
)
"""What a process is, by a part of what it runs; the first that fits."""
COMMANDS = {"svcctl --help": "", "TAB of a command": "svcctl repl", "TAB of a flag": "svcctl chat m --max"}
LIMIT_S = 60.0
SETTLED_S = 3.0
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class Node:
    """A node that is about to be started, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = dict(zip(("registry", "router", "agent", "demo"), _free_ports(), strict=True))
        theirs = {name: value for name, value in os.environ.items() if not name.startswith("SVC_")}
        self.environment = {**theirs, "HOME": str(folder), "SVC_STATE_DIR": str(folder / "state")}

    def processes(self) -> Sequence[psutil.Process]:
        """What runs of it: what has its environment, and shims, which have none, as children."""
        ours: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOME") == str(self.folder):
                    ours |= {one.pid: one for one in (process, *process.children(recursive=True))}
        return list(ours.values())

    def served_after(self, began: float) -> float:
        """Seconds from `began` to the first answer."""
        body = json.dumps({"model": "mock-small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
        url, head = f"http://127.0.0.1:{self.ports['router']}/v1/chat/completions", {"Content-Type": "application/json"}
        while time.monotonic() - began < LIMIT_S:
            with contextlib.suppress(OSError), _open(urllib.request.Request(url, body.encode(), head), timeout=5):
                return time.monotonic() - began
            time.sleep(0.02)
        logs = [path for path in self.folder.rglob("*.log") if path.is_file()]
        told = "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in (self.folder / "log", *logs))
        raise SystemExit(f"no answer within {LIMIT_S:g} s\n{told}")


def _free_ports() -> list[int]:
    """Three, and one that the next and those ten and eleven higher are free with."""
    with contextlib.ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in bound]
    return [
        *ports,
        next(
            first
            for first in range(20_000, 30_000, 20)
            if all(map(_is_free, (first, first + 1, first + 10, first + 11)))
        ),
    ]


def _is_free(port: int) -> bool:
    with socket.socket() as tried, contextlib.suppress(OSError):
        tried.bind(("127.0.0.1", port))
        return True
    return False


def by_svcctl(node: Node) -> list[str]:
    """The command of `svcctl up --demo`."""
    flags = [f"--{kind}-port={port}" for kind, port in node.ports.items()]
    return [sys.executable, "-P", "-m", "ctl", "up", "--demo", *flags]


def by_script(node: Node) -> list[str]:
    """The command of `script/launch_all.sh`, in a copy of the tree."""
    from ctl.launcher.plan import DEMO, demo_file  # noqa: PLC0415 - of the tree that is measured

    project = node.folder / "project"
    ignored = shutil.ignore_patterns(".git", ".venv", "logs", "data", "docs", "tests", ".*_cache")
    shutil.copytree(ROOT, project, ignore=ignored)
    registry = f"http://localhost:{node.ports['registry']}"
    for number, model in enumerate(DEMO):
        text = demo_file(model, node.ports["demo"] + 10 * number, registry)
        (project / f"{model}.toml").write_text(text, encoding="utf-8")
    ports = {f"{kind.upper()}_PORT": str(node.ports[kind]) for kind in ("registry", "router", "agent")}
    files = " ".join(f"{model}.toml" for model in DEMO)
    node.environment |= {**ports, "SVC_VENV": sys.prefix, "BABYSITTER_CONFIGS": files}
    return [str(project / "script" / "launch_all.sh")]


STARTS: Mapping[str, tuple[Callable[[Node], list[str]], Callable[[Node], list[str]]]] = {
    "svcctl up --demo": (by_svcctl, lambda _node: [sys.executable, "-P", "-m", "ctl", "down"]),
    "script/launch_all.sh": (by_script, lambda node: [str(node.folder / "project/script/stop_all.sh")]),
}


def start(how: str, *, weigh: bool) -> tuple[float, float, dict[str, float]]:
    """Start a node and end it; seconds until it served, CPU seconds of all its processes, and megabytes of each kind."""
    command, end = STARTS[how]
    with tempfile.TemporaryDirectory(prefix="bench-start-") as made:
        node = Node(Path(made))
        words = command(node)
        node.environment["PYTHONPATH"] = str(ROOT)
        log = (node.folder / "log").open("wb")
        began = time.monotonic()
        with subprocess.Popen(
            words, env=node.environment, cwd=made, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        ) as run:
            try:
                took_s = node.served_after(began)
                if run.wait(LIMIT_S) != 0:
                    raise SystemExit(f"{how} ended with {run.returncode}:\n{(node.folder / 'log').read_text()}")
                cpu_s = sum(sum(process.cpu_times()[:2]) for process in node.processes())
                time.sleep(SETTLED_S if weigh else 0)
                return took_s, cpu_s, memory_mb(node.processes()) if weigh else {}
            finally:
                subprocess.run(end(node), env=node.environment, cwd=made, stdout=log, stderr=log, check=False)
                log.close()


def memory_mb(processes: Iterable[psutil.Process]) -> dict[str, float]:
    """What the largest of each kind weighs, in megabytes."""
    found: dict[str, float] = {}
    for process in processes:
        words = process.cmdline()
        module = words[words.index("-m") + 1] if "-m" in words[:-1] else " ".join(words[:4])
        kind = next((kind for part, kind in KINDS if part in module), module)
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        pss = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        found[kind] = max(found.get(kind, 0), pss / 1024)
    return found


def command_s(line: str, repetitions: int) -> float:
    """The median time of a command of svcctl, or of what argcomplete starts for TAB behind `line`, in seconds."""
    with tempfile.TemporaryDirectory(prefix="bench-start-") as made:
        tab = {
            "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": f"{made}/offered",
            "COMP_LINE": line, "COMP_POINT": str(len(line)),
        }  # fmt: skip
        env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": made, **(tab if line else {})}
        words = [sys.executable, "-P", "-m", "ctl", *(() if line else ("--help",))]
        taken = []
        for _ in range(repetitions + 1):
            began = time.monotonic()
            subprocess.run(words, env=env, cwd=made, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            taken.append(time.monotonic() - began)
        return statistics.median(taken[1:])  # the first may have had modules to compile


def judged(
    times: Mapping[str, list[float]], weights: Mapping[str, float], commands: Mapping[str, float]
) -> list[Bound]:
    """Every bound, and whether it holds."""
    return [
        *(
            Bound(f"{how}: until a chat is answered, s", f"≤ {SERVES_S:g}", f"{statistics.median(took):.2f} ({min(took):.2f}-{max(took):.2f}, n={len(took)})", statistics.median(took) <= SERVES_S)
            for how, took in times.items()
        ),
        *(
            Bound(f"memory of a {kind}, MB", f"≤ {limit}", f"{weights[kind]:.1f}" if kind in weights else "-", weights[kind] <= limit if kind in weights else None)
            for kind, limit in MEMORY_MB.items()
        ),
        *(Bound(f"{what}, s", f"≤ {COMMAND_S:g}", f"{took:.2f}", took <= COMMAND_S) for what, took in commands.items()),
    ]  # fmt: skip


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--repetitions", type=int, default=5, help="of each start, in turns (default: 5)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the node is ended
    before = load_average()
    times: dict[str, list[float]] = {how: [] for how in STARTS}
    cpu: dict[str, list[float]] = {how: [] for how in STARTS}
    weights: dict[str, float] = {}
    for number in range(args.repetitions):
        for how in STARTS:
            took_s, cpu_s, found = start(how, weigh=not weights)
            times[how].append(took_s)
            cpu[how].append(cpu_s)
            weights = weights or found
            print(f"{how}, {number + 1}: {took_s:.2f} s, {cpu_s:.1f} s of CPU", flush=True)
    commands = {what: command_s(line, args.repetitions) for what, line in COMMANDS.items()}
    bounds = judged(times, weights, commands)
    print(f"\n- machine: {describe()}\n- load average {before} before, {load_average()} after\n")
    print(bound_table(bounds))
    print("\nnot bounded:", ", ".join(f"{kind} {mb:.1f} MB" for kind, mb in weights.items() if kind not in MEMORY_MB))
    if args.json:
        figures = {"bounds": [asdict(one) for one in bounds], "times_s": times, "cpu_s": cpu, "memory_mb": weights}
        args.json.write_text(json.dumps({**figures, "commands_s": commands}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
