"""A node where everything speaks mutual TLS: a deployment is made, asked and deleted, and the audit tells of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.babysitter.agent.conftest import port_range
from tests.ports import free_port
from tests.tls import Authority

pytestmark = [pytest.mark.e2e, pytest.mark.world, pytest.mark.timeout(400)]


def test_all_of_a_node_works_over_mutual_tls_and_nothing_without_a_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    variables = {f"SVC_{name.upper()}": str(path) for name, path in authority.settings(mutual=True).items()}
    ports = {kind: free_port() for kind in ("registry", "router", "agent")}
    agent = tmp_path / "agent.toml"
    agent.write_text("".join(f"{name} = {value}\n" for name, value in port_range().items()))
    places = {"SVC_STATE_DIR": str(tmp_path / "state"), "SVC_ROUTER_WORKERS": "1"}
    environ = {**os.environ, **variables, **places}

    def ctl(*words: str) -> str:
        command = [sys.executable, "-m", "ctl", *words]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def curl(kind: str, *more: str) -> int:
        words = ["curl", "-sS", "--cacert", str(authority.path), *more, f"https://localhost:{ports[kind]}/health"]
        return subprocess.run(words, capture_output=True, timeout=30, check=False).returncode

    flags = [word for kind, port in ports.items() for word in (f"--{kind}-port", str(port))]
    ctl("up", *flags, "--agent-config", str(agent))
    try:
        cert, key = authority.issue("operator")
        for kind in ports:
            assert curl(kind) != 0
            assert curl(kind, "--cert", str(cert), "--key", str(key)) == 0
        ctl("run", "chat", "--template", "mock", "--set", "model=m", "--model", "m", "--wait", "--timeout", "120")
        assert "This is m answering" in ctl("chat", "m", "hello")
        listed: dict[str, Any] = json.loads(ctl("replicas", "list", "--json"))
        (replica,) = listed["replicas"]
        ctl("replicas", "logs", replica["replica_id"])
        ctl("replicas", "stop", replica["replica_id"])
        ctl("delete", "chat")
        found = json.loads(ctl("audit", "--json"))
        calls = {(line["service"].partition(" ")[0], line["method"]) for line in found["lines"]}
        assert {("registry", "PUT"), ("registry", "DELETE"), ("agent", "POST")} <= calls
        assert not found["missing"]
    finally:
        ctl("down")
