"""A node of its own for tests: free ports, a state directory, svcctl as a process."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ctl.app import run
from ctl.launcher.state_dir import MARK
from tests.ctl.conftest import Done
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 110


@dataclass
class Node:
    """What `svcctl up` is told in a test. `cwd` is where the packages are found."""

    state: Path
    registry_port: int = field(default_factory=free_port)
    router_port: int = field(default_factory=free_port)
    agent_port: int = field(default_factory=free_port)
    cwd: Path = ROOT
    env: dict[str, str] = field(default_factory=dict)

    @property
    def ports(self) -> list[str]:
        """Flags of `up`."""
        return [
            *("--registry-port", str(self.registry_port)),
            *("--router-port", str(self.router_port)),
            *("--agent-port", str(self.agent_port)),
        ]

    def environment(self) -> dict[str, str]:
        """A user's, without what the person who runs the tests may have set."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SVC")}
        return {**clean, "SVC_STATE_DIR": str(self.state), **self.env}

    def ctl(self, *argv: str) -> Done:
        """Run svcctl without a terminal: within the test where it can be, because a process takes half a second."""
        if self.cwd != ROOT:
            done = subprocess.run(
                [sys.executable, "-m", "ctl", *argv],
                cwd=self.cwd,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT_S,
            )
            return Done(done.returncode, done.stdout, done.stderr)
        stdout, stderr = io.StringIO(), io.StringIO()
        try:
            code = run(argv, self.environment(), stdout, stderr)
        except SystemExit as error:
            code = int(error.code or 0)
        return Done(code, stdout.getvalue(), stderr.getvalue())

    def json(self, *argv: str) -> Any:
        """The same, with its result."""
        done = self.ctl(*argv, "--json")
        assert done.code == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def started(self) -> dict[str, int]:
        """Pids by name, as the files tell."""
        return {path.stem: int(path.read_text()) for path in (self.state / "logs").glob("*.pid")}

    def alive(self) -> list[psutil.Process]:
        """Every process that has to do with this node, servers and shims included."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                told = " ".join(process.cmdline()) + process.environ().get("SVC_STATE_DIR", "")
                if str(self.state) in told and process.pid != os.getpid():
                    found.append(process)
        return found

    def left(self) -> list[psutil.Process]:
        """What still runs a moment after everything was told to end."""
        psutil.wait_procs(self.alive(), timeout=10)
        return self.alive()

    def sweep(self) -> None:
        """End what a failed test left behind."""
        for process in self.alive():
            with suppress(psutil.Error):
                if MARK in process.environ() or str(self.state) in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGKILL)
