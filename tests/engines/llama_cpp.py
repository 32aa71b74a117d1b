"""llama.cpp's server for tests of the `world`: a real engine that nobody here wrote, in an environment of its own.

    with llama_cpp.serving() as engine:
        ask(f"{engine.url}/v1/models")

The environment (127 MB, some seconds) and a model of random weights are made once, under `data/engines`.
"""

import contextlib
import json
import shlex
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engines.install import HERE, PLACE, environment, once, run
from tests.ports import free_port

VERSION = "2026.10.11549"
FOLDER = PLACE / f"llama_cpp-{VERSION}"
PACKAGES = (f"xllamacpp=={VERSION}", "gguf==0.19.0", "numpy>=2")
START_S, END_S = 120.0, 30.0
"""Generous: only a failure reaches them."""


@dataclass(frozen=True)
class LlamaCpp:
    """One running server."""

    url: str
    port: int
    model: str
    pid: int
    log: Path


def python() -> Path:
    """The interpreter that has xllamacpp; makes it the first time.

    Raises:
        CalledProcessError: It cannot be installed.
    """
    return once(FOLDER, lambda: environment(FOLDER, PACKAGES)) / "bin" / "python"


def programs(folder: Path) -> Path:
    """A new folder for PATH, whose `llama-server` is that of xllamacpp, told in llama-server's own words."""
    folder.mkdir()
    program = folder / "llama-server"
    program.write_text(f'#!/bin/sh\nexec {shlex.join([str(python()), str(HERE / "llama_server.py")])} "$@"\n')
    program.chmod(0o755)
    return folder


def model(kind: str = "llama") -> Path:
    """The file of a tiny `llama`, or of an encoder that ranks, `bert`; makes it the first time."""
    interpreter, path = str(python()), FOLDER / f"{kind}.gguf"
    return once(path, lambda: run(interpreter, str(HERE / "tiny_gguf.py"), kind, str(path)))


def backend(port: int, **params: object) -> dict[str, Any]:
    """A babysitter's `[backend]` for a server of the model `tiny` on loopback; `params` as of `serving`."""
    return {"type": "command", "command": str(python()), "args": _args(port, "tiny", params)}


@contextlib.contextmanager
def serving(alias: str = "tiny", port: int | None = None, **params: object) -> Iterator[LlamaCpp]:
    """A server that is ready, on a free port of loopback; it is gone afterwards.

    Args:
        alias: The model's name.
        port: Where it listens; None takes a free one.
        params: Further members of xllamacpp's `CommonParams`, such as `api_keys=["k"]` or `n_parallel=1`.
    """
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="llama-cpp-") as folder:
        log = Path(folder) / "log"
        argv = [str(python()), *_args(port, alias, params)]
        with log.open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out, cwd=folder) as process:
            engine = LlamaCpp(f"http://127.0.0.1:{port}", port, alias, process.pid, log)
            try:
                _await_ready(engine, process)
                yield engine
            finally:
                process.terminate()
                try:
                    process.wait(END_S)
                except subprocess.TimeoutExpired:
                    process.kill()


def _args(port: int, alias: str, params: Mapping[str, object]) -> list[str]:
    settings = {"model": str(model()), "alias": alias, "port": port, "n_ctx": 4096, "n_parallel": 2, **params}
    return [str(HERE / "llama_cpp_server.py"), json.dumps(settings)]


def _await_ready(engine: LlamaCpp, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"{engine.url}/health", timeout=5).close()  # noqa: S310 - our own URL
            return
        time.sleep(0.05)
    raise AssertionError(f"llama.cpp is not ready; its log ends with:\n{engine.log.read_text()[-2000:]}")
