"""A fleet of real processes: registries, routers and agents here or in network namespaces, killed and started again.

What an agent makes carries the fleet's mark in its environment, so that every server is found in /proc, whoever knows of it.
"""

import asyncio
import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests.babysitter.agent.conftest import end_all, port_range
from tests.ports import free_port
from tests.registry.etcd import Etcd
from tests.registry.processes import environment

DEPLOYMENTS = "/api/v1/deployments"
WAIT_S = 120.0
"""Generous: only a failure reaches it, or a very busy machine."""
MARK = "E2E_FLEET"
BECOMES_S = 2.0
"""A new process is asked for so long what it is: what was forked may become another program."""
BABYSITTERS = {
    "babysitter": {"heartbeat_interval": 1, "drain_s": 20, "stop_grace_s": 5},
    "probes": {"start_interval_s": 0.1},
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where programs run: their command begins with `prefix`, and they are reached at `address`."""

    prefix: tuple[str, ...] = ()
    address: str = "127.0.0.1"

    @property
    def flags(self) -> tuple[str, ...]:
        return () if self.address == "127.0.0.1" else ("--host", self.address, "--insecure-no-auth")


HERE = Place()


@dataclass(frozen=True, slots=True)
class Server:
    """One mock server's process; `accelerators`: what the variable of its node says."""

    pid: int
    ticks: int
    model: str
    port: int
    node: str
    accelerators: tuple[str, ...]


class Servers:
    """Mock servers of one fleet, seen from outside."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._known: dict[int, tuple[float, Server | None]] = {}
        """When each process was seen first, and what it is."""

    def now(self) -> list[Server]:
        """Those that live."""
        found, now = {}, time.monotonic()
        for pid in psutil.pids():
            since, server = self._known.get(pid, (now, None))
            if server is None and now - since < BECOMES_S:
                server = self._read(pid)
            found[pid] = (since, server)
        self._known = found
        return [one for _, one in found.values() if one is not None and _ticks(one.pid) == one.ticks]

    def marked(self) -> dict[int, str]:
        """Every process that an agent, or what it made, has started: command lines by pid."""
        return {
            pid: _file(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")
            for pid in psutil.pids()
            if self._mark in _file(pid, "environ").split(b"\0")
        }

    def _read(self, pid: int) -> Server | None:
        words = _file(pid, "cmdline").decode(errors="replace").split("\0")
        if words[1:4] != ["-P", "-m", "babysitter.mock"]:
            return None
        variables = _file(pid, "environ").split(b"\0")
        if self._mark not in variables:
            return None
        given = dict(line.decode(errors="replace").partition("=")[::2] for line in variables)
        value = {name: words[words.index(name) + 1] for name in ("--model", "--port")}
        taken = tuple(one for one in given.get("CUDA_VISIBLE_DEVICES", "").split(",") if one)
        return Server(pid, _ticks(pid), value["--model"], int(value["--port"]), given["E2E_NODE"], taken)


def _ticks(pid: int) -> int:
    """When it began; 0: it has ended."""
    fields = _file(pid, "stat").rpartition(b")")[2].split()
    return int(fields[19]) if fields and fields[0] != b"Z" else 0


def _file(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


@dataclass
class Fleet:
    """What runs, by name."""

    folder: Path
    http: aiohttp.ClientSession
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    registries: list[str] = field(default_factory=list)
    routers: list[str] = field(default_factory=list)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _commands: dict[str, tuple[list[str], dict[str, str]]] = field(default_factory=dict)
    _etcd: Etcd | None = None

    def __post_init__(self) -> None:
        self.servers = Servers(self.mark)

    # Making.

    def add(self, name: str, *words: str, place: Place = HERE, **env: str) -> None:
        """Start a program; its log is NAME.log."""
        self._commands[name] = ([*place.prefix, *words], env)
        self.start(name)

    def start(self, name: str) -> None:
        """Start it, again if it was there before."""
        words, env = self._commands[name]
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                words, cwd=folder, env={**environment(), **env}, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def add_etcd(self) -> str:
        """Returns the registries' `--store`."""
        self._etcd = Etcd(self.folder / "etcd", client_port=free_port(), peer_port=free_port())
        self._etcd.start()
        return f"etcd://{self._etcd.endpoint}"

    def add_registry(self, name: str = "registry", *flags: str, place: Place = HERE) -> None:
        port = free_port()
        self.registries.append(f"http://{place.address}:{port}")
        command = (sys.executable, "-m", "registry", "--port", str(port), *place.flags, *flags)
        self.add(name, *command, place=place)

    def add_router(self, name: str = "router", *flags: str, place: Place = HERE) -> None:
        port = free_port()
        self.routers.append(f"http://{place.address}:{port}")
        words = ("--port", str(port), "--registry-url", ",".join(self.registries), *place.flags, *flags)
        self.add(name, sys.executable, "-m", "router", *words, place=place)

    def add_agent(
        self,
        node: str,
        accelerators: int = 0,
        *,
        place: Place = HERE,
        env: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        (self.folder / "babysitters.json").write_text(json.dumps(BABYSITTERS))
        given = {
            "node": node,
            "port": free_port(),
            "registry_url": ",".join(self.registries),
            "heartbeat_interval": 0.5,
            "local_workdir_root": str(self.root(node)),
            "babysitter_config": str(self.folder / "babysitters.json"),
            "accelerators": {"kind": "cuda", "count": accelerators},
            **port_range(),
            **({"host": place.address, "insecure_no_auth": True} if place != HERE else {}),
            **settings,
        }
        config = self.folder / f"agent-{node}.json"
        config.write_text(json.dumps(given))
        command = (sys.executable, "-m", "babysitter.agent", "--config", str(config))
        self.add(f"agent-{node}", *command, place=place, **{MARK: self.mark, "E2E_NODE": node, **(env or {})})

    def root(self, node: str) -> Path:
        """Where the agent of that node keeps its replicas."""
        return self.folder / f"root-{node}"

    def kill(self, name: str) -> None:
        """SIGKILL, and wait for its end."""
        self.processes[name].kill()
        self.processes[name].wait()

    # Asking.

    @property
    def router(self) -> str:
        return self.routers[0]

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Ask the first registry that answers.

        Raises:
            ClientError: None does.
        """
        error: Exception = aiohttp.ClientError("there is no registry")
        for url in self.registries:
            try:
                async with self.http.request(method, url + path, json=body) as answer:
                    return answer.status, json.loads(await answer.read())
            except aiohttp.ClientError as failed:
                error = failed
        raise error

    async def status(self, url: str) -> int:
        """What a `GET` is answered with."""
        async with self.http.get(url) as answer:
            return answer.status

    async def apply(self, name: str, **spec: Any) -> None:
        """Put a deployment of mock servers; waits for a registry, and for a node that could take it."""

        async def taken() -> bool:
            status, answer = await self.call("PUT", f"{DEPLOYMENTS}/{name}", {"template": "mock", **spec})
            assert status in (200, 201, 503), answer
            return status != 503 and not answer["warnings"]

        await self.until(f"{name} is taken", taken)

    async def info(self, name: str) -> dict[str, Any]:
        status, answer = await self.call("GET", f"{DEPLOYMENTS}/{name}")
        return dict(answer) if status == 200 else {}

    async def reached(self, name: str, phase: str, ready: int | None = None) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            info = await self.info(name)
            return info if info.get("phase") == phase and ready in (None, info["ready"]) else None

        found: dict[str, Any] = await self.until(f"{name} is {phase}, ready {ready}", look)
        return found

    async def listed(self, model: str, status: str) -> None:
        """Every router lists it so: `cold`, `ready`, … One that gave up, on a busy machine, is started again."""

        async def look() -> bool:
            for name, process in self.processes.items():
                if name.startswith("router") and process.poll() is not None:
                    self.start(name)
            for router in self.routers:
                async with self.http.get(f"{router}/v1/models") as answer:
                    data = json.loads(await answer.read())["data"]
                if not any(it["id"] == model and it.get("status", "ready") == status for it in data):
                    return False
            return True

        await self.until(f"{model} is listed as {status}", look)

    async def until(self, what: str, check: Callable[[], Awaitable[Any]], wait_s: float = WAIT_S) -> Any:
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            with suppress(aiohttp.ClientError, TimeoutError):
                if found := await check():
                    return found
            await asyncio.sleep(0.1)
        raise AssertionError(f"{what}: not within {wait_s:g} s{self.logs()}")

    def logs(self) -> str:
        return "".join(f"\n== {path.name}\n{path.read_text()[-2500:]}" for path in sorted(self.folder.glob("*.log")))

    def orphans(self) -> dict[int, str]:
        """What agents made that still runs: command lines by pid."""
        agents = {process.pid for process in self.processes.values()}
        return {pid: line for pid, line in self.servers.marked().items() if pid not in agents}

    # Ending.

    def close(self) -> None:
        """End everything: first those who make and send, then what was made."""
        for number in (signal.SIGCONT, signal.SIGTERM):
            for process in self.processes.values():
                process.send_signal(number)
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for root in self.folder.glob("root-*"):
            while end_all(root):
                time.sleep(0.1)
        if self._etcd is not None:
            self._etcd.kill()


def tell(**figures: object) -> None:
    """Print figures, which `pytest -s` shows."""
    sys.stdout.write(json.dumps(figures) + "\n")


@asynccontextmanager
async def fleet_in(folder: Path) -> AsyncIterator[Fleet]:
    """An empty fleet, which ends with the block."""
    timeout = aiohttp.ClientTimeout(total=WAIT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
        fleet = Fleet(folder, http)
        try:
            yield fleet
        finally:
            await asyncio.to_thread(fleet.close)
