"""The processes of `bench/fleet.py`: started, counted, ended by their ids."""

import asyncio
import json
import os
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bench.router.machine import free_port, memory_bytes, started, tree_cpu_s, wait_until_answers

ROOT = Path(__file__).resolve().parents[2]
REGISTRIES = 3
ROUTERS = 2
PLAY_PORT = 20_000
"""The first of the ports that all nodes use, each at an address of its own; below those that the kernel gives."""
ROOM = ("--max-endpoints", "16384")
START_WITHIN_S = 240.0
NICE = -10
"""Of our own processes: what they stand for has other machines in the field, so they come first here, where the system lets us."""
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass(slots=True)
class Part:
    """One of the processes that are measured, with those that it started."""

    pid: int
    url: str

    def cpu_s(self) -> float:
        """CPU seconds since it began."""
        return tree_cpu_s(self.pid)

    def memory_mb(self) -> float:
        """Proportional memory."""
        return memory_bytes(self.pid) / 1e6


class Child:
    """A process of ours that is told what to do, line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = iter(range(1, 1 << 60))
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())

    @property
    def part(self) -> Part:
        """As one that is measured."""
        return Part(self._process.pid, "")

    async def order(self, verb: str, **more: Any) -> dict[str, Any]:
        """Tell it; returns what it answers."""
        number = next(self._numbers)
        done = self._waiting[number] = asyncio.get_running_loop().create_future()
        cast("asyncio.StreamWriter", self._process.stdin).write(
            json.dumps({"number": number, "do": verb, **more}).encode() + b"\n"
        )
        told: dict[str, Any] = await done
        if "failed" in told:
            raise RuntimeError(told["failed"])
        return told

    async def _read(self) -> None:
        while line := await cast("asyncio.StreamReader", self._process.stdout).readline():
            told = json.loads(line)
            number = told.pop("number", None) or min(self._waiting)  # watchers answer in order, and have no numbers
            self._waiting.pop(number).set_result(told)
        for done in self._waiting.values():
            done.set_exception(RuntimeError("a process of the bench ended; see above"))


async def start_parts(
    place: Path, stack: ExitStack, *, watches: int, probe_s: float, beats_per_s: float
) -> tuple[dict[str, Part], Child, Child]:
    """Everything, in the order in which it needs each other."""
    parts: dict[str, Part] = {}

    def begin(name: str, port: int, *command: str, health: bytes = HEALTH) -> Part:
        folder = place / name
        folder.mkdir()
        log = folder / "log"
        process = stack.enter_context(
            started(command, core="0-1", log=log, folder=folder, env={"PYTHONPATH": str(ROOT)})
        )
        wait_until_answers(port, health, process, log, START_WITHIN_S)
        parts[name] = Part(process.pid, f"http://127.0.0.1:{port}")
        return parts[name]

    client, peer = free_port(), free_port()
    store = begin("etcd", client, *etcd_command(place, client, peer)).url.replace("http://", "etcd://")
    probes = ("--health-interval", str(probe_s))
    urls = []
    for number in range(REGISTRIES):
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "registry",
            "--port",
            str(port),
            "--store",
            store,
            "--log-level",
            "WARNING",
            "--max-heartbeats-per-second",
            str(beats_per_s),
            *probes,
        ]
        urls.append(begin(f"registry-{number + 1}", port, *command).url)
    for number in range(ROUTERS):
        port = free_port()
        mine = urls[number:] + urls[:number]
        begin(
            f"router-{number + 1}", port, sys.executable, "-m", "router", "--router-port", str(port), "--workers", "1",
            "--registry-url", ",".join(mine), "--data-dir", str(place / f"table-{number}"), "--log-level", "WARNING", *ROOM, *probes,
        )  # fmt: skip
    play = await _child(stack, "bench.fleet.play", str(PLAY_PORT), *urls)
    watchers = await _child(stack, "bench.fleet.watchers", str(watches), *urls)
    parts["replicas"], parts["watches"] = play.part, watchers.part
    return parts, play, watchers


def etcd_command(place: Path, client: int, peer: int) -> list[str]:
    """One etcd, at these ports of loopback, with its data in a folder of `place`."""
    ours, others = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    return [
        "etcd", "--name", "fleet", "--data-dir", str(place / "etcd.data"), "--log-level", "error",
        "--listen-client-urls", ours, "--advertise-client-urls", ours, "--listen-peer-urls", others,
        "--initial-advertise-peer-urls", others, "--initial-cluster", f"fleet={others}",
    ]  # fmt: skip


async def _child(stack: ExitStack, module: str, *arguments: str) -> Child:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdin=pipe, stdout=pipe, cwd=ROOT, limit=64 << 20
    )
    stack.callback(lambda: process.returncode is None and process.kill())
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
    return Child(process)
