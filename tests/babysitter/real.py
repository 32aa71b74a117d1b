"""Real processes for the tests: a babysitter over a mock server on free ports, asked over HTTP, ended by pid."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from babysitter import identity
from babysitter.attempt import ServerAttempt
from babysitter.family import is_janitor
from tests.ports import free_port

PROJECT = Path(__file__).resolve().parents[2]
POLL_S = 0.1
WAIT_S = 60.0
"""Generous: it is only reached by a failure, and the machine may be busy."""


def until(what: str, check: Callable[[], Any], wait_s: float = WAIT_S) -> Any:
    """Poll `check` until it gives something true; fails with `what`."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(POLL_S)
    raise AssertionError(f"{what}: not within {wait_s:g} s")


def debian(name: str) -> str:
    """The path of a program, installed from its Debian package of the same name when it is missing."""
    if shutil.which(name) is None:
        subprocess.run(["apt-get", "install", "-y", "-q", name], check=True, stdout=subprocess.DEVNULL)
    found = shutil.which(name)
    assert found is not None
    return found


def ask(url: str, body: Any = None, timeout_s: float = 5.0) -> Any:
    """The JSON answer of `url` (whatever its status), or None when nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=timeout_s) as answer:  # noqa: S310 - our own URL
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error, contextlib.suppress(ValueError):
            return json.load(error)
        return None
    except (OSError, ValueError):
        return None


@dataclass
class Node:
    """One replica's configuration, and the babysitters that were started for it."""

    directory: Path
    port: int = field(default_factory=free_port)
    name: str = "r1"
    backend: dict[str, Any] = field(default_factory=lambda: {"type": "mock", "models": ["m"]})
    restarts: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)
    top: dict[str, Any] = field(default_factory=dict)
    babysitters: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def config(self) -> Path:
        """The settings file, written anew."""
        settings = {
            "name": self.name,
            "port": self.port,
            "data_dir": str(self.directory / "data"),
            "log_dir": str(self.directory / "logs"),
            **self.top,
            "babysitter": {"restart_delay": 0.2, "drain_s": 1, "stop_grace_s": 3, **self.restarts},
            "probes": {"start_interval_s": 0.1, "interval_s": 0.2, "timeout_s": 1, **self.probes},
            "backend": self.backend,
        }
        path = self.directory / "babysitter.json"
        path.write_text(json.dumps(settings))
        return path

    def start(self, *flags: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a babysitter; its log is `babysitter.log`."""
        with (self.directory / "babysitter.log").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "babysitter", "--config-file", str(self.config), *flags],
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **(env or {})},
            )
        self.babysitters.append(process)
        return process

    def health(self) -> dict[str, Any]:
        """`GET /health` of the babysitter, `{}` when it does not answer."""
        return ask(f"http://127.0.0.1:{self.port + 1}/health") or {}

    def report(self) -> dict[str, Any]:
        """The replica's report."""
        return dict((ask(f"http://127.0.0.1:{self.port + 1}/info") or {}).get("replica", {}))

    def server(self, path: str, body: Any = None) -> Any:
        """Ask the server itself."""
        return ask(f"http://127.0.0.1:{self.port}{path}", body)

    def ready(self, wait_s: float = WAIT_S) -> int:
        """Wait until the replica is ready; returns the server's pid."""
        try:
            report = until("ready", lambda: (r := self.report()).get("status") == "ready" and r, wait_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None
        return int(report["replica_pid"])

    def status(self, wanted: str, wait_s: float = WAIT_S) -> dict[str, Any]:
        """Wait for a status; returns the report."""
        try:
            return dict(until(wanted, lambda: (r := self.report()).get("status") == wanted and r, wait_s))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def log(self) -> str:
        """The babysitters' log."""
        return (self.directory / "babysitter.log").read_text()

    def state_path(self) -> Path:
        """The replica's state file."""
        return self.directory / "data" / "babysitter" / "state" / f"{self.name}.json"

    def state(self) -> dict[str, Any]:
        """The replica's state file, read as an operator would."""
        return dict(json.loads(self.state_path().read_bytes()))

    @property
    def attempts_path(self) -> Path:
        """The directory of its attempts."""
        return self.directory / "data" / "babysitter" / self.name / "attempts"

    def attempts(self) -> list[str]:
        """Uuids of all attempts on disk."""
        return [entry.name for entry in self.attempts_path.iterdir()] if self.attempts_path.exists() else []

    def processes(self) -> list[int]:
        """Pids of all live servers and their offspring, of any attempt."""
        return [found.pid for uuid in self.attempts() for found in self.members(uuid)]

    def members(self, uuid: str) -> tuple[identity.Identity, ...]:
        """The live processes of an attempt."""
        attempt = ServerAttempt(self.attempts_path / uuid, grace_s=0)
        attempt.recall()
        return attempt.members()

    def close(self) -> None:
        """End everything that was started."""
        for process in self.babysitters:
            if process.poll() is None:
                process.kill()
            process.wait()
        until("everything ended", self._is_ended)

    def _is_ended(self) -> bool:
        """Kill what there is, which may have been about to start something; True when nothing is left."""
        left = [*shims(self.place()), *self.processes()]
        for pid in left:
            if not is_janitor(pid):  # it ends with the others, and unlinks their shared memory: vLLM's are 400 MB
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return not left

    def place(self) -> Path:
        """The directory under which its shims work."""
        return self.directory


def shims(directory: Path) -> list[int]:
    """Pids of the shims that work under `directory`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if any(word.endswith(b"/shim.py") for word in words) and any(
                    word.startswith(str(directory).encode()) for word in words
                ):
                    found.append(int(entry.name))
    return found


@dataclass
class Replica(Node):
    """A replica as the agent makes it: `root/{id}/request.json`, its client deployed from an index."""

    name: str = "abc123def456"
    request: dict[str, Any] = field(default_factory=dict)
    client: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, Any] = field(default_factory=dict)
    shared: Path | None = None

    @property
    def root(self) -> Path:
        """The agent's root; a shared one has its environments already."""
        return self.shared or self.directory / "root"

    @property
    def home(self) -> Path:
        """`root/{id}`."""
        return self.root / self.name

    @property
    def config(self) -> Path:
        """The settings file, written anew, and the request."""
        self.home.mkdir(parents=True, exist_ok=True)
        asked = {"server_mode": "replica", "model_name": "llama3.1-8b", **self.request}
        (self.home / "request.json").write_text(json.dumps(asked))
        settings = {
            **self.top,
            "babysitter": {"restart_delay": 0.2, "drain_s": 1, "stop_grace_s": 3, **self.restarts},
            "probes": {"start_interval_s": 0.1, "interval_s": 0.2, "timeout_s": 1, **self.probes},
            "cbclient": {"retry_delay_s": 0.1, "stage_timeout_s": 60, **self.client},
            "jobs": self.jobs,
        }
        path = self.directory / f"{self.name}.json"
        path.write_text(json.dumps(settings))
        return path

    def start(self, *flags: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a babysitter for the replica."""
        return super().start("--replica-dir", str(self.home), "--port", str(self.port), *flags, env=env)

    def state_path(self) -> Path:
        """`root/state/{id}.json`."""
        return self.root / "state" / f"{self.name}.json"

    @property
    def attempts_path(self) -> Path:
        """The directory of its attempts."""
        return self.home / "attempts"

    def place(self) -> Path:
        """The directory under which its shims work."""
        return self.home

    def stages(self) -> dict[str, dict[str, Any]]:
        """The last deployment's stages, by name, from the state file."""
        return {stage["name"]: stage for stage in self.state()["stages"]}


def is_forking(pid: int) -> bool:
    """True while a process of ours is not yet what it will be (the shim's child before its exec)."""
    try:
        return b"shim.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


@contextlib.contextmanager
def replica(directory: Path, **changes: Any) -> Iterator[Replica]:
    """A replica that is ended whatever happens."""
    node = Replica(directory, **changes)
    try:
        yield node
    finally:
        node.close()


@contextlib.contextmanager
def running(directory: Path, **changes: Any) -> Iterator[Node]:
    """A node that is ended whatever happens."""
    node = Node(directory, **changes)
    try:
        yield node
    finally:
        node.close()


def light(directory: Path, **changes: Any) -> contextlib.AbstractContextManager[Node]:
    """Like `running`, over a server that starts in a tenth of the mock's time."""
    port = free_port()
    script = str(PROJECT / "tests" / "babysitter" / "light_server.py")
    backend = {"type": "command", "command": sys.executable, "args": ["-I", "-S", script, str(port)]}
    return running(directory, port=port, **{"backend": backend, **changes})
