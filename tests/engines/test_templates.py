"""A real engine made of the shipped template: llama.cpp, asked by the official client, adopted after kills, and gone when told."""

import os
import signal
import sys
from pathlib import Path

import openai
import pytest

from babysitter.agent import processes
from tests.babysitter.agent.agent_process import agent
from tests.babysitter.real import PROJECT, ask
from tests.engines import llama_cpp

pytestmark = [pytest.mark.world, pytest.mark.timeout(600)]


def test_llama_cpp_of_the_shipped_template_serves_by_the_name_that_was_asked_for(tmp_path: Path) -> None:
    programs = llama_cpp.programs(tmp_path / "bin")
    env = {"PYTHONPATH": str(PROJECT), "PATH": f"{programs}:{os.environ['PATH']}"}
    settings = {"babysitter_command": [sys.executable, "-m", "babysitter"]}
    with agent(tmp_path, settings=settings, env=env) as node:
        node.start()
        body = {
            "backend": {"template": "llama-cpp", "parameters": {"model": str(llama_cpp.model()), "ctx_size": 512}},
            "model_name": "small talk",
            "request_id": "dep-u-1",
        }
        replica_id = ask(f"{node.url}/api/v1/replicas", body)["replica_id"]
        ready = node.reached(replica_id, "ready")
        assert ready["models"] == ["small talk"]
        client = openai.OpenAI(base_url=f"{ready['base_url']}/v1", api_key="none")
        words_said = [it.choices[0].text for it in client.completions.create(model="small talk", prompt="a", max_tokens=4, stream=True)]  # fmt: skip
        assert words_said
        node.end(signal.SIGKILL)
        os.kill(processes.scan(node.root)[replica_id][0].process.pid, signal.SIGKILL)
        node.start()
        assert ask(f"{node.url}/api/v1/replicas", body)["replica_id"] == replica_id
        assert node.reached(replica_id, "ready")["replica_pid"] == ready["replica_pid"]
        ask(f"{node.url}/api/v1/replicas/{replica_id}/stop", {})
        node.reached(replica_id, "stopped")
        with pytest.raises(openai.APIConnectionError):
            client.with_options(max_retries=0).models.list()
