"""The program `llama-server` for tests: llama.cpp's own HTTP server, as xllamacpp ships it, told in its own words.

Run by the interpreter of tests/engines/llama_cpp.py. It takes the flags of llama-server that tests use, and ends on SIGTERM.
"""

import argparse
import json

from llama_cpp_server import main  # type: ignore[import-not-found]  # beside it; run as a program

RANK = 4
"""llama.cpp's number of this pooling."""


def read(argv: list[str] | None = None) -> dict[str, object]:
    """The members of xllamacpp's `CommonParams` that the command line means."""
    parser = argparse.ArgumentParser(prog="llama-server", allow_abbrev=False)
    for flag in ("--model", "--alias", "--host"):
        parser.add_argument(flag, required=True)
    for flag, default in (("--port", 8080), ("--ctx-size", 4096), ("--parallel", 2)):
        parser.add_argument(flag, type=int, default=default)
    for flag in ("--metrics", "--embeddings", "--reranking", "--context-shift"):
        parser.add_argument(flag, action="store_true")
    told = parser.parse_args(argv)
    settings = {
        "model": told.model,
        "alias": told.alias,
        "hostnames": [told.host],
        "port": told.port,
        "n_ctx": told.ctx_size,
        "n_parallel": told.parallel,
        "endpoint_metrics": told.metrics,
        "ctx_shift": told.context_shift,
        "use_jinja": True,  # llama-server's own default
    }
    if told.embeddings:
        settings |= {"embedding": True, "pooling_type": 1}
    if told.reranking:
        settings |= {"embedding": True, "pooling_type": RANK}
    return settings


if __name__ == "__main__":
    main(json.loads(json.dumps(read())))
