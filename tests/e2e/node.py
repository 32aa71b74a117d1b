"""A node of its own for a test: a copy of the tree, free ports, and the real scripts."""

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import cache_from_source
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_TIMEOUT_S = 110
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def copy_tree(target: Path) -> None:
    """The files of the project, as git knows them (new ones included)."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:  # an unpacked archive
        ignored = shutil.ignore_patterns(".git", ".venv", "logs", "data", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, target, ignore=ignored)
        return
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
            # Python's own compiled form, where it is: compiling the whole tree anew would take each copy seconds.
            cache = Path(cache_from_source(name))
            if name.endswith(".py") and (ROOT / cache).is_file():
                (target / cache).parent.mkdir(exist_ok=True)
                shutil.copy2(ROOT / cache, target / cache)


@dataclass
class Node:
    """A copy of the project in `folder`, whose scripts are run with `environment`."""

    folder: Path
    registry_port: int
    router_port: int
    environment: dict[str, str] = field(default_factory=dict)
    agent_port: int = field(default_factory=free_port)

    @property
    def registry(self) -> str:
        return f"http://localhost:{self.registry_port}"

    @property
    def agent(self) -> str:
        return f"http://localhost:{self.agent_port}"

    @property
    def router(self) -> str:
        return f"http://localhost:{self.router_port}"

    def full_environment(self) -> dict[str, str]:
        """What a user would have in the environment."""
        ours = ("SVC_", "REGISTRY_", "ROUTER_", "AGENT_", "BABYSITTER_", "LAUNCH_")
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            "SVC_VENV": sys.prefix,
            "SVC_SETUP": "skip",
            # What is tested is what happens, not how busy the machine is.
            **{f"{part}_WAIT_TIMEOUT": "60" for part in ("REGISTRY", "ROUTER", "AGENT", "BABYSITTER")},
            "REGISTRY_PORT": str(self.registry_port),
            "ROUTER_PORT": str(self.router_port),
            "AGENT_PORT": str(self.agent_port),
            "AGENT_NODE": "n1",
            **self.environment,
        }

    def run(self, script: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `script/NAME` as a user would, from another folder, without a terminal."""
        return subprocess.run(
            [str(self.folder / "script" / script), *args],
            cwd=self.folder.parent,
            env={**self.full_environment(), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=LAUNCH_TIMEOUT_S,
        )

    def write_config(self, name: str, text: str) -> None:
        """A file under config/."""
        (self.folder / "config" / name).write_text(text)

    def pid(self, name: str) -> int:
        """What a pid file says."""
        return int((self.folder / "logs" / f"{name}.pid").read_text())

    def processes(self) -> list[psutil.Process]:
        """Every process that works in this folder; one that has ended and waits to be reaped by init is none."""
        found = []
        for process in psutil.process_iter():
            try:
                cwd = process.cwd()
                ended = process.status() == psutil.STATUS_ZOMBIE
            except (psutil.Error, OSError):
                continue
            if not ended and Path(cwd).is_relative_to(self.folder) and process.pid != os.getpid():
                found.append(process)
        return found

    def left(self) -> list[psutil.Process]:
        """What still runs a moment after everything was told to end: a router's worker may be at its last line."""
        psutil.wait_procs(self.processes(), timeout=10)
        return self.processes()


def ask(url: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of one call."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})  # noqa: S310 - http
    try:
        with _open(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@contextmanager
def entry_point(
    folder: Path, environment: Mapping[str, str], *, cwd: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """The container's entry point of the project in `folder`, once the node is up, and what it says from then on."""
    with subprocess.Popen(
        [str(folder / "deploy/docker/entrypoint.sh")],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as entry:
        assert entry.stdout is not None
        said = []
        for line in entry.stdout:
            said.append(line)
            if line.startswith("Status:"):
                break
        else:
            pytest.fail(f"the node did not come up: {''.join(said)}")
        try:
            yield entry, entry.stdout
        finally:
            entry.terminate()
