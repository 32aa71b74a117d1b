"""Registries as real processes."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]


def command(*flags: str) -> list[str]:
    """The command line of a registry."""
    return [sys.executable, "-m", "registry", *flags]


def environment() -> dict[str, str]:
    """This process's environment without settings of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SVC_")}
    return {**kept, "PYTHONPATH": str(ROOT)}


@contextmanager
def running(directory: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A registry on a free port, listening; killed on leaving. Yields the process and its URL."""
    with (directory / "registry.log").open("ab") as log:
        start = log.tell()
        process = subprocess.Popen(
            command("--port", "0", *flags), cwd=directory, env=environment(), stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        with (directory / "registry.log").open("rb") as lines:
            lines.seek(start)
            port = _listening_port(lines, process)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _listening_port(lines: IO[bytes], process: subprocess.Popen[bytes]) -> int:
    pending = b""
    while True:
        pending += lines.readline()
        if pending.endswith(b"\n"):
            if b"service.listening" in pending:
                found = re.search(rb'"port":(\d+)', pending)
                assert found
                return int(found[1])
            pending = b""
        elif process.poll() is not None:
            raise AssertionError(f"the registry ended with {process.returncode} before it listened")
        else:
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
