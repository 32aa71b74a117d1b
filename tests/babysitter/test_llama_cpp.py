"""A real llama.cpp server behind a babysitter: ready exactly when a request succeeds, restarted when it hangs."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.babysitter.real import Node, ask, running, until
from tests.engines import llama_cpp

pytestmark = [pytest.mark.world, pytest.mark.timeout(300)]
PROBES = {"start_interval_s": 0.2, "interval_s": 0.5, "timeout_s": 2, "generate_timeout_s": 2, "generate_interval_s": 2}


def serve(node: Node, **params: object) -> None:
    node.backend = llama_cpp.backend(node.port, **params)
    node.probes = {**PROBES, "liveness_s": 4}
    node.start()


def generate(node: Node) -> bool:
    said = node.server("/v1/completions", {"model": "tiny", "prompt": "1", "max_tokens": 1})
    return bool(said and said.get("choices"))


def test_llama_cpp_is_ready_exactly_when_a_request_succeeds_W26(tmp_path: Path) -> None:
    with running(tmp_path) as node:
        serve(node, endpoint_metrics=1)
        node.ready()
        assert generate(node)
        until("its work is reported", lambda: node.report().get("running") is not None)
        assert (node.report()["running"], node.report()["waiting"]) == (0, 0)


def test_embeddings_server_is_asked_for_an_embedding_W51(tmp_path: Path) -> None:
    with running(tmp_path) as node:
        serve(node, embedding=True, pooling_type=1)
        node.ready()
        said = ask(f"http://127.0.0.1:{node.port}/v1/embeddings", {"model": "tiny", "input": "1"})
        assert said["data"][0]["embedding"]


def test_llama_cpp_that_hangs_is_restarted_and_a_busy_one_is_not_W45(tmp_path: Path) -> None:
    with running(tmp_path) as node:
        serve(node, endpoint_metrics=1, n_parallel=1)
        pid = node.ready()
        for _ in range(4):  # its only slot is taken for longer than a token may take
            assert node.server("/v1/completions", {"model": "tiny", "prompt": "1", "max_tokens": 3000})
        assert node.report()["restart_count"] == 0
        os.kill(pid, signal.SIGSTOP)
        until("restarted", lambda: node.report()["restart_count"] == 1)
        assert node.ready() != pid
        time.sleep(3)
        assert node.report()["restart_count"] == 1
