import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Bash = Callable[..., subprocess.CompletedProcess[str]]

SLEEPER = """
import signal, sys, time
if "--stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "--fail" in sys.argv:
    print("no such luck")
    sys.exit(78)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the scripts, and a `registry` that only sleeps."""
    folder = tmp_path / "a project"
    shutil.copytree(ROOT / "script", folder / "script")
    shutil.copytree(ROOT / "common", folder / "common", ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("registry", "babysitter"):
        (folder / module).mkdir()
        (folder / module / "__init__.py").touch()  # else the installed package of that name would be found instead
        (folder / module / "__main__.py").write_text(SLEEPER)
    (folder / "config").mkdir()
    (folder / "logs").mkdir()
    return folder


@pytest.fixture
def bash(project: Path) -> Iterator[Bash]:
    """Run a snippet of bash after sourcing lib.sh; whatever a snippet starts is ended with the test."""

    def run(snippet: str, *args: str, cwd: Path = project, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", f'. "{project}/script/lib.sh"\n{snippet}', "bash", *args],
            cwd=cwd,
            env={**os.environ, "SVC_VENV": sys.prefix, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    yield run
    run('mapfile -t names < <(known_processes ""); stop_processes 1 "${names[@]}"')
