"""The agent as a process, which may be killed and started again."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.babysitter.agent.conftest import end_all, port_range, wanted
from tests.babysitter.agent.light_command import LIGHT
from tests.babysitter.real import PROJECT, ask, until
from tests.ports import free_port

PLAIN = ("HOST", "PORT", "SERVICE_HOST", "SERVICE_PORT", "CONFIG_FILE", "LOCAL_WORKDIR_ROOT", "CLEANUP_ON_SHUTDOWN")


@dataclass
class AgentProcess:
    """An agent of its own root; `settings` go into its file."""

    directory: Path
    settings: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    ports: dict[str, int] = field(default_factory=port_range)
    process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "agent.log").read_text()

    def spawn(self, **env: str) -> subprocess.Popen[bytes]:
        """Start it, and wait for nothing."""
        given = {
            "node": "n1",
            "port": self.port,
            "local_workdir_root": str(self.root),
            "babysitter_command": list(LIGHT),
            **self.ports,
            **self.settings,
        }
        config = self.directory / "agent.json"
        config.write_text(json.dumps(given))
        inherited = {name: value for name, value in os.environ.items() if name not in PLAIN}
        with (self.directory / "agent.log").open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "babysitter.agent", "--config", str(config)],
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**inherited, **self.env, **env},
            )

    def start(self, **env: str) -> None:
        """Start it and wait until it answers."""
        self.process = self.spawn(**env)

        def answers() -> Any:
            assert self.process is not None
            assert self.process.poll() is None, self.log
            return ask(f"{self.url}/health")

        until("the agent answers", answers)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def create(self, **changes: Any) -> str:
        """Make a replica; its id."""
        return str(ask(f"{self.url}/api/v1/replicas", wanted(**changes))["replica_id"])

    def infos(self) -> dict[str, dict[str, Any]]:
        """Every info by id; `{}` when the agent does not answer."""
        listed = ask(f"{self.url}/api/v1/replicas") or {"replicas": []}
        return {it["replica_id"]: it for it in listed["replicas"]}

    def info(self, replica_id: str) -> dict[str, Any]:
        """One info."""
        return dict((ask(f"{self.url}/api/v1/replicas/{replica_id}") or {}).get("info", {}))

    def reached(self, replica_id: str, *statuses: str) -> dict[str, Any]:
        """Wait for one of these statuses; the info."""
        return dict(
            until(
                f"{replica_id} reaches {statuses}",
                lambda: (found := self.info(replica_id)).get("status") in statuses and found,
            )
        )


@contextlib.contextmanager
def agent(directory: Path, **changes: Any) -> Iterator[AgentProcess]:
    """An agent that ends, with all it made, whatever happens."""
    made = AgentProcess(directory, **changes)
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait()
        end_all(made.root)
