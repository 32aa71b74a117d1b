"""A reader at a terminal: types a page's commands one after the other, in a copy of the project with ports of its own.

Ports are the only words of a command that are changed: a test may not take the ones that a page names.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.docs.pages import ROOT, Block
from tests.e2e.node import Node, copy_tree
from tests.ports import free_ports

PAIRS = (8000, 8021, 8031, 18000, 18001, 18100, 2379)
"""Ports that pages name; each comes with the next one. 8001 and 8011 are the demo's, and stay ten apart."""
TIMEOUT_S = 100


@dataclass
class Session:
    """The reader's folder, and what stands in for each port."""

    folder: Path
    path: str
    ports: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        free = free_ports(len(PAIRS) + 20)
        demo = next(port for port in free if port + 10 in free)
        chosen = {8001: demo, 8011: demo + 10}
        chosen |= zip(PAIRS, (port for port in free if port not in chosen.values()), strict=False)
        for first, port in chosen.items():
            self.ports[str(first)] = str(port)
            self.ports.setdefault(str(first + 1), str(port + 1))

    def own(self, text: str) -> str:
        """`text` with the ports of this session."""
        names = "|".join(sorted(self.ports, key=len, reverse=True))
        return re.sub(rf"(?<![\d.])({names})(?!\d)", lambda found: self.ports[found[0]], text)

    def type(self, block: Block) -> str:
        """Run a block; what it printed.

        Raises:
            AssertionError: A command of it failed.
        """
        log = self.folder / "typed.log"
        with log.open("w") as out:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", self.own(block.text)],
                cwd=self.folder,
                env=self.full_environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,  # a file: what a block starts in the background would keep a pipe open
                stderr=subprocess.STDOUT,
                check=False,
                timeout=TIMEOUT_S,
            )
        printed = log.read_text()
        assert done.returncode == 0 or not block.must_succeed, (
            f"{block.where} ended with {done.returncode}:\n{block.text}\n{printed}"
        )
        return printed

    def full_environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in ("LANG", "TMPDIR", "USER")}
        return {**kept, "HOME": str(self.folder), "PATH": self.path, **self.environment}

    def left(self) -> list[psutil.Process]:
        """What still runs, a moment after the last command."""
        return Node(self.folder, 0, 0).left()

    def end(self) -> None:
        """Kill what a page left running; a page that ends well leaves nothing."""
        for process in Node(self.folder, 0, 0).processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # its parent may have been killed just before it
                process.kill()
                process.wait(10)


def require(*tools: str) -> None:
    """Skip a test where a reader's tools are missing (`.ci/run` installs them)."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def in_the_project(folder: Path) -> Session:
    """A reader who has a copy of the project and its environment."""
    copy_tree(folder)
    for room in ("babysitter", "common", "ctl", "registry", "router"):
        shutil.rmtree(folder / room)
        (folder / room).symlink_to(ROOT / room)  # Python has compiled these already
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    scripts = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["scripts"]
    for name in scripts:
        module = {"svcctl": "ctl", "svc-agent": "babysitter.agent"}.get(name, name.removeprefix("svc-"))
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    session = Session(folder, f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    for config in (folder / "config").rglob("*.toml"):
        # A stop waits for the router's idle connections, for some seconds; not here.
        text = config.read_text().replace("[babysitter]\n", "[babysitter]\ndrain_s = 0.5\n")
        config.write_text(session.own(text))
    session.environment = {
        "PYTHONPATH": str(folder),
        "SVC_VENV": sys.prefix,
        "SVC_SETUP": "skip",
        "REGISTRY_PORT": session.ports["18000"],
        "ROUTER_PORT": session.ports["8000"],
        "AGENT_PORT": session.ports["18100"],
        "ETCD_PORT": session.ports["2379"],
        "ETCD_PEER_PORT": session.ports["2380"],
        "SVC_ROUTER_WORKERS": "1",
        **{f"{part}_WAIT_TIMEOUT": "90" for part in ("REGISTRY", "ROUTER", "AGENT", "BABYSITTER", "ETCD")},
    }
    return session


def matches(wanted: str, printed: str) -> bool:
    """Whether every line of `wanted` was printed, in that order; `…` stands for anything."""
    at = 0
    for line in filter(None, map(str.strip, wanted.splitlines())):
        pattern = r"[ \t]+".join(".*".join(map(re.escape, word.split("…"))) for word in line.split())
        found = re.compile(pattern).search(printed, at)
        if found is None:
            return False
        at = found.end()
    return True
